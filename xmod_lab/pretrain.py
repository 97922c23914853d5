"""Pre-train a modular model, train one further, make one of a dense encoder, or add languages.

python -m xmod_lab.pretrain [langset=NAME] [model=tiny|small|base|shared] [KEY=VALUE ...]
python -m xmod_lab.pretrain +lang=new_lang [base=RUN] [KEY=VALUE ...]
python -m xmod_lab.pretrain +lang=new_lang lang.new_lang.code=oc_FR lang.new_lang.text=my.txt
python -m xmod_lab.pretrain +lang=[new_lang,sw]
python -m xmod_lab.pretrain base=RUN_OR_MODEL [langset=NAME] [train=slots] [KEY=VALUE ...]
python -m xmod_lab.pretrain [+lang=NAME] plan=true
python -m xmod_lab.pretrain -m +lang=new_lang,sw seed=1,2
"""

from xmod_lab.stops import quiet_when_interrupted

if __name__ == "__main__":
    quiet_when_interrupted()

from pathlib import Path

from xmod_lab.cli import hide_bars, run_command
from xmod_lab.cli.exit_status import exit_status_of
from xmod_lab.config.schema import PretrainConfig
from xmod_lab.errors import UserError
from xmod_lab.process_rank import launched, process_count


def main() -> None:
    """Entry point of the command."""
    run_command("pretrain", _start)


def _start(cfg: PretrainConfig, folder: Path) -> int:
    devices, nodes = cfg.trainer.devices, cfg.trainer.nodes
    if launched() and cfg.plan:
        raise UserError(
            "start plan=true without torchrun, with the same trainer.devices: it plans for all "
            "processes in one"
        )
    if launched() and process_count() != devices * nodes:
        raise UserError(
            "set trainer.devices to torchrun's --nproc_per_node and trainer.nodes to its --nnodes: "
            f"{process_count()} processes were started, but trainer.devices={devices} × "
            f"trainer.nodes={nodes} needs {devices * nodes}"
        )
    if devices * nodes == 1 or launched() or cfg.plan:
        return _train(cfg, folder)
    if nodes > 1:
        raise UserError(
            "start several machines with torchrun, and set the run dir with hydra.run.dir=PATH: "
            f"trainer.nodes is {nodes}"
        )
    from xmod_lab.processes import launch  # imported here: refusals must not wait for torch

    return launch(_in_process, (cfg, folder), devices)


def _in_process(cfg: PretrainConfig, folder: Path) -> int:
    return exit_status_of(lambda: hide_bars() or _train(cfg, folder))


def _train(cfg: PretrainConfig, folder: Path) -> int:
    from xmod_lab.machine import device_kind
    from xmod_lab.processes import join
    from xmod_lab.runs.folder import RunDir
    from xmod_lab.stages.continuing import go_on
    from xmod_lab.stages.extension import add_languages
    from xmod_lab.stages.planning import plan_run
    from xmod_lab.stages.pretraining import pretrain_base
    from xmod_lab.training.memory import keep_memory

    join(device_kind(cfg.trainer.accelerator))
    keep_memory()
    work = go_on if cfg.goes_on else add_languages if cfg.lang else pretrain_base
    work = plan_run if cfg.plan else work
    work(cfg, RunDir(folder))
    return 0


if __name__ == "__main__":
    main()
