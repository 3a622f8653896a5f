"""All rows, in the order of the table."""

from .._row import Row
from . import distributed, gradients, graphs, inputs, int8, misuse, numerics, pt2e, randomness, state, twins

__all__ = ["GROUPS", "ROWS"]

#: By subject, which is a table in the docs.
GROUPS: dict[str, tuple[Row, ...]] = {
    "Values": (
        numerics.reference,
        numerics.out_shape,
        numerics.batch_indep,
        numerics.determinism,
        randomness.random_flag,
        randomness.stochastic,
        inputs.no_mutation,
        inputs.no_broadcast,
    ),
    "Gradients": (
        gradients.gradcheck,
        gradients.gradcheck_slow,
        gradients.gradgradcheck,
        gradients.grads_reach,
        gradients.noncontig,
        gradients.functional,
        gradients.checkpointed,
    ),
    "State": (
        state.factory_kwargs,
        state.no_loose_tensor,
        state.no_shared_module,
        state.train_eval_flag,
        state.statistics,
        state.meta,
        state.skip_init,
        state.copies,
    ),
    "Inputs and misuse": (
        inputs.dtypes,
        inputs.channels_last,
        inputs.empty_batch,
        misuse.errors,
        misuse.unknown_keyword,
        misuse.wrong_width,
    ),
    "Programs": (
        graphs.fx,
        graphs.script,
        graphs.compiled,
        graphs.exported,
        graphs.onnx,
        graphs.inductor,
        graphs.aoti,
    ),
    "Several processes": (
        distributed.ddp,
        distributed.fsdp2,
        distributed.fsdp2_meta,
        distributed.syncbn,
        distributed.ddp_two,
        distributed.fsdp2_two,
    ),
    "Twins": (twins.twin_keys, twins.fuse),
    "Int8 modules": (int8.ptq_eager, int8.qat_eager, int8.int8_io),
    "Int8 graphs": (pt2e.pt2e_ptq, pt2e.pt2e_io, pt2e.pt2e_qat, pt2e.onnx_qdq),
}
ROWS: tuple[Row, ...] = tuple(row for rows in GROUPS.values() for row in rows)
