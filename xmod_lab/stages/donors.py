"""Which pre-trained slot suits a new language best, told by the loss before any training
(``slot_init=nearest``).

The language's text, cut and embedded as training will begin with it, goes through the slot of each
donor in turn; the pieces to be predicted are fixed. The rows are of the training text, so that what
the language is scored on has no say.
"""

from tqdm import tqdm

from xmod_lab.config.schema import PretrainConfig
from xmod_lab.model import NEAREST, XmodLanguageModel, donors_of
from xmod_lab.processes import gather, process_count, rank
from xmod_lab.scoring.held_out import FixedTargets, on_device
from xmod_lab.text.corpus import Prepared

ROWS = 64  # some hundreds of sentences

DonorRanking = list[tuple[str, float]]  # code of a donor, nats per predicted piece; the best first


def sampled_targets(cfg: PretrainConfig, prepared: Prepared, code: str) -> FixedTargets:
    """The labels that initialisations of the language are compared by: those of ROWS rows of its
    training text, as the objective scores text."""
    return FixedTargets(
        code,
        prepared.corpora[code].sample(ROWS),
        prepared.tokenizer,
        cfg.objective,
        attention=cfg.data.attention,
    )


def rank_donors(
    cfg: PretrainConfig, model: XmodLanguageModel, prepared: Prepared, code: str
) -> DonorRanking:
    """All pre-trained slots as the slot of ``code``, a language that was added to ``model`` and has
    its vocabulary.

    The slot of ``code`` is overwritten; donors are read. Several processes share the donors out. Of
    donors with equal losses the one that was pre-trained as the earlier of the two comes first.
    """
    donors, targets = donors_of(NEAREST, model.config), sampled_targets(cfg, prepared, code)
    losses = {}
    with on_device(model, cfg.trainer.accelerator):
        mine = donors[rank() :: process_count()]
        for donor in tqdm(
            mine, desc=f"trying donors for {code}", unit=" slots", leave=False, disable=None
        ):
            model.initialise_slot(code, f"copy:{donor}")
            losses[donor] = targets.loss(model)
    losses = gather(losses)
    return sorted(losses.items(), key=lambda item: (item[1], donors.index(item[0])))
