"""Makes the sample runs that the explorer opens with: `python -m apps.explorer.samples [NAME …]`.

A few minutes on the bundled model; each run is what its command line says and can be made again alone.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from apps.explorer.settings import samples_folder
from interp.cli.main import app
from interp.errors import BadInput, choose

NAME = re.compile(r"\{([\w.-]+)\}")
SMALL = "--sizes train=512,validation=64,test=128,ood=64"
TUNING = "--steps 150 --batch 16"
MASK = "--sparsity 0.003 --steps 20"
SUMS = "-n 60 --max-new-tokens 80"
HYPERVECTORS = (
    "--dimensions 256 --ingestions resid_post.1,resid_post.2,resid_post.3,clusters --hidden 256 --epochs 60 "
    "--keep linear/before/resid_post.3 --half"
)

COMMANDS: dict[str, str] = {
    "retrieval": "heads score pocket --lengths 256,512 --needles 3 --causal",
    "retrieval-early": "heads score pocket-early --lengths 256,512 --needles 3",
    "roles": "heads roles pocket",
    "needles": "heads ablate pocket --counts 2,4 --ablations mean --lengths 256,512,1024 --needles 3 --controls 2",
    "head-effects": "heads ablate pocket --all --ablations mean --lengths 256 --depths 0,50,100 --needles 4",
    "ioi-heads": "patch pocket --task ioi --site z --by head -n 24",
    "ioi-positions": "patch pocket --task ioi --site resid_pre --by position --positions IO,S1,S1+1,S2,end -n 24",
    "ioi-circuit": "circuit ioi pocket -n 40 --test 24 --random 10",
    "objects-circuit": "circuit colored-objects pocket -n 40 --test 24 --random 10",
    "circuit-reuse": "circuit reuse pocket -n 40 --test 100 --controls 10",
    "vsa-analogies": f"probe vsa fit pocket {HYPERVECTORS} --causal resid_post.2",
    "vsa-key-value": f"probe vsa fit pocket {HYPERVECTORS} --task key-value --moments before,after",
    "ast": "probe ast fit pocket --generated -n 400 --rank 16 --ranks 2,4,8,32",
    "head-importance": "heads ablate pocket --all --gradients --lengths 256 --depths 0,50,100 --needles 4",
    "skill-topic": f"skill localize pocket {{tuned-topic}} --task topic {SMALL} {MASK}",
    "skill-scenes": f"skill localize pocket {{tuned-scenes}} --task topic:scenes {SMALL} {MASK}",
    "skill-sentiment": f"skill localize pocket {{tuned-sentiment}} --task sentiment {SMALL} {MASK}",
    "skill-overlap": "skill overlap --mask {skill-topic} --mask {skill-scenes} --mask {skill-sentiment}",
    "skill-evaluation": f"skill evaluate pocket {{tuned-topic}} --task topic {SMALL} --mask {{mask-0.1}} --mask "
    "{skill-topic} --mask {mask-1} --mask {mask-10} --baselines random,movement --seeds 0,1",
    "skill-continual": f"skill continual pocket --task topic+sentiment {SMALL} --steps 100 --batch 16 --mask-steps 10",
    "depth": "probe depth pocket --data country,sentiment,comparison -n 200 --difficulty 2 --sites resid_post "
    "--strengths 0.01,0.1 --perturb tokens:0.1,rtn-int4",
    "clue-verification": "probe verify fit pocket {traces} --missing drop",
    "clue-ranking": "probe verify rank pocket {traces} --centroids {clue-verification} --k 1,2,4,8 --greedy {greedy}",
    "lofit": "skill lofit pocket --heads 1,3,6 --epochs 4 --baselines random,all --sizes train=96,test=150",
    "projection": "project pocket --data sentiment --difficulty 2 --site resid_post.2 --components 3 --mean-difference",
    "knob": "knob fit pocket",
    "knob-answers": "knob eval pocket --knob {knob} -n 60 --values=-40,-20,-10,0,10,20,30,40,60,80,100",
}
"""By the name of the run, the command that makes it; a name in braces stands for another run's folder."""
BEFORE: dict[str, str] = {
    "traces": f"probe verify collect pocket {SUMS} --samples 16 --temperature 1.8",
    "greedy": f"probe verify collect pocket {SUMS} --samples 1 --temperature 0",
    "tuned-topic": f"skill finetune pocket --task topic {SMALL} {TUNING}",
    "tuned-scenes": f"skill finetune pocket --task topic:scenes {SMALL} {TUNING}",
    "tuned-sentiment": f"skill finetune pocket --task sentiment {SMALL} {TUNING}",
    "mask-0.1": f"skill localize pocket {{tuned-topic}} --task topic {SMALL} --sparsity 0.001 --learning-rate 1e6",
    "mask-1": f"skill localize pocket {{tuned-topic}} --task topic {SMALL} --sparsity 0.01 --steps 20",
    "mask-10": f"skill localize pocket {{tuned-topic}} --task topic {SMALL} --sparsity 0.1 --steps 0",
}
"""What samples are made from and do not ship: fine-tuned weights, larger masks."""


def make(folder: Path, names: list[str]) -> None:
    """Make the named runs anew in `folder`. Raises BadInput for a name that is none, before any is removed."""
    if unknown := [name for name in names if name not in COMMANDS]:
        raise BadInput(f"there is no sample {unknown[0]!r}; {choose(unknown[0], COMMANDS)}")
    with TemporaryDirectory() as scratch:
        for name in names:
            for run in (folder / name, *folder.glob(f"{name}-causal-*")):
                shutil.rmtree(run, ignore_errors=True)
        for name in names:
            _run(name, folder, Path(scratch))


def _run(name: str, folder: Path, scratch: Path) -> Path:
    """The run of this name, made where it is not there yet, and what it is made from before it."""
    out = (folder if name in COMMANDS else scratch) / name
    if not out.exists():
        words = ({**COMMANDS, **BEFORE}[name]).split()
        named = [NAME.sub(lambda other: str(_run(other[1], folder, scratch)), word) for word in words]
        app(args=[*named, "--out", str(out)], standalone_mode=False)
    return out


if __name__ == "__main__":
    make(samples_folder(), sys.argv[1:] or list(COMMANDS))
