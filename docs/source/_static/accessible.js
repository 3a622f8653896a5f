// The theme and Sphinx leave these to the page: names of buttons, lists in signatures, and wide content that only a mouse can scroll.
document.querySelectorAll("button.search-button-field").forEach((button) => {
  if (button.innerText.trim()) button.removeAttribute("aria-label");
});
document.querySelectorAll(".sphx-glr-thumbcontainer a").forEach((link) => link.setAttribute("aria-label", link.textContent.trim()));
document.querySelectorAll("details > summary").forEach((toggle) => {
  const link = toggle.closest("li")?.querySelector("a");
  if (link && !toggle.textContent.trim()) toggle.setAttribute("aria-label", `Pages below ${link.textContent.trim()}`);
});
document.querySelectorAll("dt dl").forEach((list) => {
  for (const part of [list, ...list.children]) part.setAttribute("role", "none");
});
document.querySelectorAll("div.math, div.highlight pre, .pst-scrollable-table-container").forEach((wide) => {
  if (wide.scrollWidth > wide.clientWidth) wide.setAttribute("tabindex", "0");
});
