"""Reading, collecting and rewriting Python source with libcst, for the tools that copy layers to other files."""
