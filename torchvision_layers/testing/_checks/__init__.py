"""All checks, in the order of the conformance table."""

from .._check import Check
from . import (
    devices,
    distributed,
    gradients,
    inputs,
    int8,
    invalid_inputs,
    numerics,
    programs,
    pt2e,
    randomness,
    state,
    twins,
)

__all__ = ["CHECKS", "GROUPS"]

#: Checks by subject. Each subject is a table in the docs.
GROUPS: dict[str, tuple[Check, ...]] = {
    "Values": (
        numerics.reference,
        numerics.out_shape,
        numerics.batch_indep,
        numerics.determinism,
        numerics.deterministic,
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
        devices.other_device,
        state.skip_init,
        state.copies,
    ),
    "Inputs and errors": (
        inputs.dtypes,
        inputs.channels_last,
        inputs.empty_batch,
        invalid_inputs.errors,
        invalid_inputs.unknown_keyword,
        invalid_inputs.wrong_width,
    ),
    "Programs": (
        programs.fx,
        programs.script,
        programs.compiled,
        programs.exported,
        programs.onnx,
        programs.inductor,
        programs.aoti,
    ),
    "Several processes": (
        distributed.ddp,
        distributed.fsdp2,
        distributed.fsdp2_meta,
        distributed.syncbn,
        distributed.ddp_two,
        distributed.fsdp2_two,
    ),
    "GPUs": (devices.tf32, devices.no_sync, devices.cuda_graph),
    "Twins": (twins.twin_keys, twins.fuse),
    "Int8 modules": (int8.ptq_eager, int8.qat_eager, int8.int8_io),
    "Int8 graphs": (pt2e.pt2e_ptq, pt2e.pt2e_io, pt2e.pt2e_qat, pt2e.onnx_qdq),
}
CHECKS: tuple[Check, ...] = tuple(check for checks in GROUPS.values() for check in checks)
