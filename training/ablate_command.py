"""`spatial-v2a-train ablate`: trains and scores a grid of variants, writes one table, one picture.

Run: spatial-v2a-train ablate configs/ablations/spatial.yaml --data D --test T --init C --out O
"""

from pathlib import Path
from typing import Annotated

import typer


def ablate(
    plan: Annotated[Path, typer.Argument(help="YAML file of the grid.")],
    data: Annotated[list[Path], typer.Option(help="Folder of training shards; repeatable.")],
    test: Annotated[list[Path], typer.Option(help="Folder of shards to score; repeatable.")],
    init: Annotated[Path, typer.Option(help="Checkpoint with autoencoder and perception.")],
    store: Annotated[Path, typer.Option(help="Feature store with detected features.")],
    out: Annotated[Path, typer.Option(help="Folder of the grid; the same command resumes it.")],
    clips: Annotated[int | None, typer.Option(min=1, help="Clips to score.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Scoring processes.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads; 0 keeps torch's choice.")] = 0,
) -> None:
    """Trains and scores every variant of a grid on the same data, steps and seeds."""
    import torch

    from spatial_v2a.training.ablation import Inputs, load_plan, run_variant
    from spatial_v2a.training.ablation_report import write_ablation

    grid = load_plan(plan)
    if threads:
        torch.set_num_threads(threads)
    inputs = Inputs(data=data, test=test, init=init, store=store, num_clips=clips, jobs=jobs)
    rows = {}
    for number, variant in enumerate(grid.variants, start=1):
        for seed in grid.seeds:
            print(f"variant {number}/{len(grid.variants)}: {variant.name}, seed {seed}", flush=True)
            row = run_variant(grid, variant, inputs, out, seed=seed)
            rows.setdefault(variant.name, []).append(row)
    setting = (
        f"Plan {plan.name}, base `{grid.config}`, {len(grid.seeds)} seed(s); "
        f"trained on {', '.join(map(str, data))}, scored on {', '.join(map(str, test))}."
    )
    print(write_ablation(out, rows, baseline=grid.baseline, setting=setting))
    print(f"table and picture: {out / 'ablation.md'}, {out / 'ablation.png'}")
