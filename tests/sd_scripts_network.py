"""Run by test_state_form.py in a process of its own: loads a state folder as sd-scripts' training does.

    python sd_scripts_network.py SD_SCRIPTS STATE RANK ALPHA OUT

Their own `LoRANetwork` lies on their own FLUX (one block of each kind, width 3072, no memory for its weights), with
`split_qkv=True`. Accelerate loads the state into it and into its AdamW; what arrived is written to OUT: the whole
effect of each layer, and each moment beside the parameter that it belongs to.
"""

import importlib.util
import sys
from types import ModuleType


def main(source: str, state: str, rank: int, alpha: float, out: str) -> None:
    sys.modules.setdefault("torchao", None)  # type: ignore[arg-type]  diffusers would import it, for seconds
    import torch
    from diffusers import AutoencoderKL, EulerAncestralDiscreteScheduler  # noqa: F401  before the stand-ins
    from transformers import CLIPTextModel  # noqa: F401

    sys.path.insert(0, source)
    for name in ("cv2", "einops", "torchvision"):  # imported there, and not used by what is called here
        if importlib.util.find_spec(name) is None:
            sys.modules[name] = stand_in = ModuleType(name)
            stand_in.rearrange = stand_in.transforms = None
    from accelerate import Accelerator
    from library.flux_models import Flux, FluxParams
    from networks.lora_flux import create_network

    params = FluxParams(
        in_channels=64, vec_in_dim=768, context_in_dim=4096, hidden_size=3072, mlp_ratio=4.0, num_heads=24, depth=1,
        depth_single_blocks=1, axes_dim=[16, 56, 56], theta=10_000, qkv_bias=True, guidance_embed=True,
    )  # fmt: skip
    with torch.device("meta"):
        flux = Flux(params)
    network = create_network(1.0, rank, alpha, None, [None, None], flux, split_qkv="True")
    network.apply_to([None, None], flux, False, True)
    groups = network.prepare_optimizer_params_with_multiple_te_lrs(None, 1e-4, 1e-4)[0]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    accelerator = Accelerator(cpu=True)
    network, optimizer, schedule = accelerator.prepare(network, optimizer, schedule)
    accelerator.load_state(state)

    found: dict[str, torch.Tensor] = {}
    for name, parameter in network.named_parameters():
        found[name] = parameter.detach()
        found[f"{name}!"] = optimizer.state[parameter]["exp_avg"]
    for lora in network.unet_loras:
        found[f"{lora.lora_name}*"] = torch.tensor(float(lora.scale))
    torch.save(found, out)
    accelerator.save_state(f"{out}-state")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
