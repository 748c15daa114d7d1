"""Runs a model on two devices of this process and two of another, and prints what it generated as JSON."""

import json
import sys
from typing import Any

import jax

from realm_jax import LLM, MeshConfig, SamplingParams


def main(rank: int, coordinator: str, path: str, implementation: str) -> None:
    """Join the other process, load the model, generate."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, num_processes=2, process_id=rank)
    assert (jax.device_count(), jax.local_device_count()) == (4, 2)
    mesh = MeshConfig(data=2, tensor=2)
    options: dict[str, Any] = {"max_model_len": 64, "max_num_seqs": 2, "block_size": 16, "quiet": True}
    llm = LLM(path, implementation=implementation, mesh=mesh, **options)
    prompts: list[Any] = [{"prompt_token_ids": [1, 2, 3]}, {"prompt_token_ids": list(range(30))}]
    params = SamplingParams(max_tokens=5, temperature=0.8, seed=1, ignore_eos=True)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    print(json.dumps([output.outputs[0].token_ids for output in outputs]))


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
