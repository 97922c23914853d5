"""The report page: made from run dirs alone, right about seeds, and kind about missing data."""

import csv
import functools
import io
import json
import re
import shutil
from dataclasses import asdict, replace
from html import escape
from html.parser import HTMLParser

import numpy as np
import pandas
import pytest
from omegaconf import OmegaConf
from scipy import stats

from tests.helpers import composed
from xmod_lab import report
from xmod_lab.metrics import digits_of
from xmod_lab.reports.groups import Sample, groups_of
from xmod_lab.reports.page import render
from xmod_lab.reports.plots import (
    HALF,
    WIDE,
    bars,
    curves,
    dots,
    heat_map,
    interval_bars,
    png,
    scatter,
    svg,
)
from xmod_lab.reports.results import find_runs
from xmod_lab.tables import Table, tex

_composed = functools.cache(composed)  # which takes most of the time


def make_run(folder, *overrides, seed=1, after=1.25, base="auto"):
    """A run dir as `+lang=new_lang` leaves it, with these figures."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = replace(
        _composed("+lang=new_lang", "lang.new_lang.code=el_GR", *overrides),
        seed=seed,
        base=str(base),
    )
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.structured(cfg)))
    scores = {
        "val/loss/el_GR": 6.125,
        "val/bpb/el_GR": after,
        "before/val/loss/el_GR": 9.5,
        "before/val/bpb/el_GR": 2.5,
        "unigram/loss/el_GR": 6.5,
        "unigram/bpb/el_GR": 1.375,
    }
    old = {f"{w}val/{u}/en_XX": 5.0625 for w in ("", "before/") for u in ("loss", "bpb")}
    counts = {
        f"train/{k}/el_GR": v
        for k, v in (("tokens", 8192), ("rows", 64), ("passes", 0.5), ("bytes", 12345))
    }
    speed = {"train/tokens_per_second/el_GR": 1000.0, "train/seconds/el_GR": 10.5}
    (folder / "metrics.json").write_text(json.dumps({**scores, **old, **counts, **speed}))
    with (folder / "metrics.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows(
            [
                ["step", "train/loss/el_GR", "val/loss/el_GR", "val/bpb/el_GR"],
                [0, "", 9.5, 2.5],
                [10, 7.5, 6.125, after],
            ]
        )
    proof = {
        "holds": True,
        "tensors_compared": 7,
        "tensors_changed": [],
        "tensors_missing": [],
        "tensors_added": ["a"],
        "tensors_added_without_language": [],
        "logits": {"en_XX": {"equal": True}},
        "numbers": {"en_XX": {"before": 0, "after": 0, "equal": True}},
    }
    (folder / "proof.json").write_text(json.dumps(proof))
    return folder


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the command and return its exit status and what it says."""

    def start(*arguments):
        monkeypatch.setattr("sys.argv", ["report", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            report.main()
        return stop.value.code, "".join(capsys.readouterr())

    return start


def page_of(*paths):
    return render(find_runs(list(paths)))[0]


def test_the_page_has_the_figures_and_needs_nothing_else(run, call):
    assert call(run)[0] == 0
    page = (run / "report.html").read_text()
    for value in (
        "6.12",
        "9.50",
        "1.38",
        "equal to the last bit",
        "holds",
        "7 of 7",
        "8,192",
        "0.500",
        "10.5",
    ):
        assert value in page
    assert (
        not re.search(r'(?:src|href)="(?!#)', page.replace('xlink:href="#', ""))
        and "<script" not in page
    )
    assert page == page_of(run)  # the same run, the same page


def test_hostile_names_are_escaped(run):
    config = OmegaConf.load(run / "config.yaml")
    config.lang.new_lang.code = "<img src=x>"
    OmegaConf.save(config, run / "config.yaml")
    assert "<img" not in page_of(run)


HOSTILE = "<img src=x onerror=alert(1)>\"'&<script>$\\frac{\x1b[2J\u202e"


class Tags(HTMLParser):
    """All elements and attributes of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found |= {
            tag,
            *(
                f"{tag} {name}"
                for name, _ in attributes
                if name.startswith("on") or name in ("src", "href")
            ),
        }


def test_hostile_names_are_text_wherever_they_stand(tmp_path):
    """Run folders, settings, languages, translation sets, tensors, metrics, donors, samples."""
    plain, runs = [], []
    for names, folder in (((HOSTILE, "b" + HOSTILE), runs), (("one", "two"), plain)):
        for number, name in enumerate(names):
            top = tmp_path / ("hostile" if folder is runs else "plain")
            run = make_run(top / name, f"lang.new_lang.slot_init={'mean' if number else 'random'}")
            folder.append(run)
            config = OmegaConf.load(run / "config.yaml")
            config.lang.new_lang.text = f"{name}{number}"
            config.lang.new_lang.code = name
            OmegaConf.save(config, run / "config.yaml")
            for file in ("metrics.json", "proof.json"):
                content = json.dumps(json.loads((run / file).read_text())).replace(
                    "el_GR", json.dumps(name)[1:-1]
                )
                (run / file).write_text(content)
            curve = io.StringIO()
            csv.writer(curve).writerows([["step", f"val/bpb/{name}"], [0, 2.5], [4, 1.5]])
            (run / "metrics.csv").write_text(curve.getvalue())
            proof = json.loads((run / "proof.json").read_text())
            (run / "proof.json").write_text(
                json.dumps({**proof, "holds": False, "tensors_changed": [name]})
            )
            sample = {
                "before": name,
                "hidden": name,
                "after": name,
                "rank": 1,
                "likeliest": [[name, 0.5]],
            }
            (run / "samples.json").write_text(json.dumps({name: [sample]}))
        top = folder[0].parent
        evaluated = top / "evaluated"
        evaluated.mkdir()
        config = OmegaConf.merge(
            OmegaConf.create(asdict(composed())), {"evaluate": {"pll": False}, "base": names[0]}
        )
        OmegaConf.save(config, evaluated / "config.yaml")
        where = f"retrieval/{names[0]}"
        figures = {
            "val/exact": 0,
            "val/loss/en_XX": 3.0,
            "val/bpb/en_XX": 1.0,
            f"{where}/chance/top1": 0.1,
            f"{where}/chance/mrr": 0.2,
        }
        for end in ("layer0", "layer1"):
            figures |= {f"{where}/{metric}/{end}": 0.5 for metric in ("top1", "mrr")}
            figures |= {f"{where}/top1/{a}/{b}/{end}": 0.5 for a, b in (("en", "de"), ("de", "en"))}
        (evaluated / "metrics.json").write_text(json.dumps(figures))
    for pair in ((runs, plain), (runs[:1], plain[:1])):
        pages = []
        for paths in pair:
            paths = [paths[0].parent] if len(paths) > 1 else paths
            page, files = render(find_runs(paths))
            pages.append(page)
            assert all(
                re.fullmatch(r"[\w.-]+", name) and len(name.encode()) < 250 for name in files
            )
            for text in (page, *files.values()):
                text.encode()
                assert "\x1b" not in text and "\u202e" not in text
        hostile, harmless = (Tags(page).found for page in pages)
        assert (
            hostile == harmless
            and not any(" on" in tag for tag in hostile)
            and "&lt;img" in pages[0]
        )


def test_names_in_figures_are_neither_formulas_nor_warnings(tmp_path):
    """Such names end up as titles, ends of lines, ticks and notes."""
    name = "$\\frac{$ 中"
    lines = {name: [[(0, 1.0), (1, 2.0)]], "b": [[(0, 2.0), (1, 1.0)]]}
    span = (0.5, 0.4, 0.6)
    for figure in (
        curves(lines, x=name, y=name, levels={name: 1.5}, title=name),
        bars({name: 1.0, "b": 2.0}, x=name, notes={name: name, "b": ""}),
        dots({name: span, "b": span}, x=name, seeds={}, title=name),
        scatter({name: [(1, 2)], "b": [(2, 1)]}, x=name, y=name, title=name),
        heat_map({name: {name: 1.0, "b": 2.0}}, title=name, x=name, y=name),
        interval_bars({name: {name: span}}, levels={name: 0.5}, level=name, title=name, y=name),
    ):
        assert "<svg" in svg(figure, name)
        png(figure, tmp_path / "figure.png")


@pytest.mark.parametrize("width", [WIDE, HALF])
def test_the_label_of_an_axis_is_within_the_figure(width):
    label = "held-out loss, nats per predicted token (pseudo-likelihoods)"
    figure = curves({"a": [[(0, 1.0), (1, 2.0)]]}, x="step", y=label, width=width)
    figure.draw_without_rendering()
    box = figure.axes[0].yaxis.label.get_window_extent()
    assert 0 <= box.y0 < box.y1 <= figure.bbox.height and box.x0 >= 0


ODD = {  # what a metrics.json may hold instead
    "nan": '{"val/loss/el_GR": NaN}',
    "infinite": '{"val/loss/el_GR": 1e999}',
    "huge": '{"val/loss/el_GR": 1%s}' % ("0" * 400),
    "digits": '{"val/loss/el_GR": 1%s}' % ("0" * 5000),
    "text": '{"val/loss/el_GR": "5"}',
    "null": '{"val/loss/el_GR": null}',
    "truth": '{"val/loss/el_GR": true}',
    "list": '{"val/loss/el_GR": [1]}',
    "deep": f'{{"val/loss/el_GR": {"[" * 100000}1{"]" * 100000}}}',
    "array": "[1, 2]",
    "name": json.dumps({"x" * 100000: 1.0}),
    "bytes": "\udcff",
    "half a pair": '{"val/loss/el_GR": 5.0, "train/passes/el_GR": 2.0}',
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_figures_are_a_message_and_hide_no_other_run(tmp_path, call, odd):
    good, bad = make_run(tmp_path / "good", seed=1), make_run(tmp_path / "bad", seed=2)
    (bad / "metrics.json").write_bytes(ODD[odd].encode("utf-8", "surrogateescape"))
    status, said = call(bad)
    assert status == 2 and str(bad) in said and len(said) < 1500, said
    assert not (bad / "report.html").exists()
    status, said = call(tmp_path)
    assert status == 0 and f"left out: {bad}" in said
    page = (tmp_path / "report.html").read_text()
    assert (
        "1 of 2 runs are finished" in page
        and f"<li>{bad}" in page
        and "6.12" in page
        and good.name in page
    )


FILES = [  # of a run, and what else they may hold
    ("config.yaml", "a: [b"),
    ("config.yaml", "lang: 3"),
    ("metrics.csv", "step,val/loss/x\n1,nan\n"),
    ("metrics.csv", "step,a\n1,2,3\n"),
    ("samples.json", '{"el_GR": 3}'),
    ("proof.json", '{"holds": true}'),
    ("proof.json", '{"a": ' * 100000),
]


@pytest.mark.parametrize("number", range(len(FILES)))
def test_odd_files_of_a_run_are_a_message(run, call, number):
    name, content = FILES[number]
    (run / name).write_text(content)
    status, said = call(run)
    assert status == 2 and str(run) in said and "Traceback" not in said and len(said) < 1500, said


def test_counts_of_tensors_are_those_of_one_run(tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path / str(seed), seed=seed)
    page = page_of(tmp_path)
    assert "<td>7 of 7 each</td>" in page and "21" not in re.search("Proof of.*?</table>", page)[0]
    proof = json.loads((tmp_path / "2" / "proof.json").read_text())
    (tmp_path / "2" / "proof.json").write_text(
        json.dumps({**proof, "tensors_changed": ["lm_head.bias"]})
    )
    assert "7 of 7; 6 of 7; 7 of 7" in page_of(tmp_path)


def test_samples_of_a_run_are_shown(run):
    sample = {
        "before": "the",
        "hidden": "▁cat",
        "after": "sat <here>",
        "rank": 1234,
        "likeliest": [["▁dog", 0.25], ["▁", 0.125]],
    }
    (run / "samples.json").write_text(json.dumps({"el_GR": [sample]}))
    page, files = render(find_runs([run]))
    for text in (
        "What the model fills in",
        "the ▢ sat &lt;here&gt;",
        "▁cat",
        "▁dog 0.25 · ▁ 0.12",
        "1,234",
    ):
        assert text in page
    assert files["samples.csv"].splitlines()[1] == "el_GR,the,▁cat,sat <here>,1234,▁dog,0.25"


def test_an_unfinished_run_says_so_and_a_failed_proof_shows_what_moved(run):
    (run / "metrics.json").unlink()
    proof = json.loads((run / "proof.json").read_text())
    (run / "proof.json").write_text(
        json.dumps({**proof, "holds": False, "tensors_changed": ["lm_head.bias"]})
    )
    page = page_of(run)
    assert "not finished" in page and "does not hold" in page and "lm_head.bias" in page


@pytest.mark.parametrize("damage", ["none", "json", "list", "absent", "never began"])
def test_what_is_no_run_is_refused(run, damage, call):
    if damage in ("none", "never began"):
        (run / "config.yaml").unlink()
    if damage in ("json", "list"):
        (run / ("proof.json" if damage == "json" else "config.yaml")).write_text(
            "{" if damage == "json" else "- 1"
        )
    if damage == "absent":
        shutil.rmtree(run)
    if damage == "never began":
        begin_nothing(run)
    status, said = call(run)
    assert status == 2 and "error: " in said and str(run) in said
    assert not (run / "report.html").exists()


def begin_nothing(folder):
    """As Hydra leaves a job after its settings are refused."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "hydra.yaml").write_text("hydra:\n  job:\n    name: pretrain\n")


def test_broken_and_unfinished_jobs_are_named_and_the_others_shown(tmp_path, call):
    sweep = tmp_path / "sweep"
    for job in range(4):
        make_run(sweep / str(job), seed=job)
    (sweep / "1" / "metrics.json").unlink()
    with (sweep / "1" / "metrics.csv").open("a") as curve:
        curve.write("20,7.5,1e")  # cut off by a kill
    (sweep / "2" / "metrics.csv").write_bytes(b"step\xff\n")
    begin_nothing(sweep / "10")
    status, said = call(sweep)
    page = (sweep / "report.html").read_text()
    assert (
        status == 0
        and "2 of 5 runs are finished" in page
        and "not finished: sweep/1 (step 10)" in page
    )
    for job, why in (("2", "cannot be read"), ("10", "never began")):
        assert f"{sweep / job}: " in page and why in page and f"left out: {sweep / job}" in said
    assert (
        "[" not in re.search("<table><caption>Bits per byte.*?</table>", page)[0]
    )  # two seeds have no interval


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_seeds_are_one_group_with_the_interval_of_scipy(tmp_path, seeds):
    values = np.random.default_rng(seeds).normal(1.2, 0.05, seeds).tolist()
    for seed, value in enumerate(values):
        make_run(
            tmp_path / str(seed),
            f"runs={tmp_path / str(seed)}",
            "logger=csv",
            seed=seed,
            after=value,
        )
    page, files = render(find_runs([tmp_path]))
    (tmp_path / "results.csv").write_text(files["results_bpb.csv"])
    table = pandas.read_csv(tmp_path / "results.csv")
    after = table[table.figure == "after"].iloc[0]
    assert (after.seeds, after["mean"]) == (seeds, pytest.approx(np.mean(values), rel=1e-12))
    if seeds < 3:
        assert np.isnan(after.low) and np.isnan(after.high) and "95% interval" not in page
        return
    low, high = stats.t.interval(0.95, seeds - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (after.low, after.high) == pytest.approx((low, high), rel=1e-12)
    digits = digits_of((high - low) / 2)
    assert f"[{low:.{digits}f}, {high:.{digits}f}]" in page
    assert f"{min(values):.{digits}f} – {max(values):.{digits}f}" in page
    saved = (
        pandas.read_csv(write(tmp_path / "price.csv", files["price.csv"]))
        .query("saved_since == 'unigram'")
        .iloc[0]
    )
    assert (saved.low, saved.high) == pytest.approx(
        (1.375 - high, 1.375 - low)
    ) and saved.tokens == 8192
    assert saved.seconds == 10.5


def write(path, text):
    path.write_text(text)
    return path


def test_only_settings_that_differ_are_shown_and_name_the_groups(tmp_path):
    for i, method in enumerate(("focus", "mean")):
        for seed in (1, 2):
            init = f"lang.new_lang.embedding_init={method}"
            make_run(
                tmp_path / f"{i}{seed}", init, "trainer.checkpoint_every=7", seed=seed, after=1 + i
            )
    groups, repeats = groups_of(find_runs([tmp_path]).runs)
    assert [group.name for group in groups] == ["focus", "mean"] and not repeats
    assert [group.settings for group in groups] == [
        {"lang.new_lang.embedding_init": n} for n in ("focus", "mean")
    ]
    assert [group.sample("val/bpb/el_GR").values for group in groups] == [[1, 1], [2, 2]]


def test_a_language_that_only_some_runs_add_is_one_difference(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", "+lang=[new_lang,sw]", "lang.new_lang.code=el_GR")
    groups, _ = groups_of(find_runs([tmp_path]).runs)
    assert [group.settings for group in groups] == [{"lang": "new_lang"}, {"lang": "new_lang, sw"}]


def test_bases_that_differ_by_their_seed_alone_are_seeds_too(tmp_path):
    for name, alpha, seed in (("a", 0.7, 1), ("b", 0.7, 2), ("c", 0.3, 1)):
        (tmp_path / "bases" / name).mkdir(parents=True)
        base = OmegaConf.structured(composed(f"data.alpha={alpha}", f"seed={seed}"))
        OmegaConf.save(base, tmp_path / "bases" / name / "config.yaml")
        make_run(tmp_path / "runs" / name, base=tmp_path / "bases" / name)
    groups, _ = groups_of(find_runs([tmp_path / "runs"]).runs)
    assert [[run.seeds for run in group.runs] for group in groups] == [[(1, 1), (1, 2)], [(1, 1)]]
    assert [group.settings["base.data.alpha"] for group in groups] == ["0.7", "0.3"]


@pytest.mark.parametrize(("bases", "seeds"), [(3, 3), (5, 2)])
def test_intervals_over_bases_and_seeds_cover_19_times_in_20(bases, seeds):
    """Bases differ by 0.02, their extensions by 0.004; the interval of one base covers its own."""
    generator, draws = np.random.default_rng(1), 1000
    of_base = generator.normal(1.2, 0.02, (draws, bases, 1))
    values = of_base + generator.normal(0, 0.004, (draws, bases, seeds))
    origins = [(base,) for base in range(bases) for _ in range(seeds)]
    found = [Sample(list(v), origins).interval for v in values.reshape(draws, -1).tolist()]
    assert 0.93 < np.mean([low <= 1.2 <= high for low, high in found]) < 0.97
    if seeds > 2:
        given = [Sample(list(v), [(1,)] * seeds).interval for v in values[:, 0].tolist()]
        assert (
            0.93
            < np.mean(
                [low <= b <= high for (low, high), b in zip(given, of_base[:, 0, 0], strict=True)]
            )
            < 0.97
        )
        assert (
            np.mean([low <= 1.2 <= high for low, high in given]) < 0.5
        )  # so the page says: given this base


def test_bases_come_before_seeds_however_many_runs_each_has():
    sample = Sample([1.0, 2.0, 3.0, 10.0, 20.0], [(1,), (1,), (1,), (2,), (3,)])
    assert sample.units == [2, 10, 20] and sample.mean == pytest.approx(32 / 3)
    low, high = stats.t.interval(0.95, 2, loc=32 / 3, scale=stats.sem([2, 10, 20]))
    assert sample.interval == pytest.approx((low, high)) and sample.p == pytest.approx(
        stats.ttest_1samp([2, 10, 20], 0).pvalue
    )
    assert (sample.record()["seeds"], sample.record()["bases"]) == (5, 3)
    deep = Sample(
        [1.0, 3.0, 5.0, 9.0], [(1, 1), (1, 1), (1, 2), (2, 1)]
    )  # the first base of all, then its extension
    assert deep.units == [3.5, 9] and deep.interval is None
    one = Sample([1.0, 2.0, 6.0], [(7, 1), (7, 2), (7, 2)])
    assert one.units == [1, 4]
    assert Sample([1.0, 2.0, 4.0], [(), (), ()]).units == [1, 2, 4]


def _base(folder, seed: int, *overrides: str):
    folder.mkdir(parents=True)
    OmegaConf.save(
        OmegaConf.structured(replace(_composed(*overrides), seed=seed)), folder / "config.yaml"
    )
    return folder


def test_a_page_says_whether_its_intervals_are_over_bases_or_given_one(tmp_path):
    for base in (1, 2, 3):
        folder = _base(tmp_path / "bases" / str(base), base)
        for seed in (1, 2, 3):
            make_run(
                tmp_path / "all" / f"{base}-{seed}", seed=seed, base=folder, after=base + seed / 100
            )
    page, files = render(find_runs([tmp_path / "all"]))
    (row,) = [
        r for r in csv.DictReader(io.StringIO(files["results_bpb.csv"])) if r["figure"] == "after"
    ]
    low, high = stats.t.interval(0.95, 2, loc=2.02, scale=stats.sem([1.02, 2.02, 3.02]))
    assert (row["seeds"], row["bases"], row["group"]) == ("9", "3", "9 runs on 3 bases")
    assert (float(row["low"]), float(row["high"])) == pytest.approx(
        (low, high)
    ) and f"[{low:z.0f}, {high:.0f}]" in page
    assert "Means over bases (the mean" in page and "Given this base" not in page
    page = page_of(*(tmp_path / "all" / f"1-{seed}" for seed in (1, 2, 3)))
    assert (
        "Means over seeds" in page
        and "Given this base: how much bases differ is not in it." in page
    )


def test_bases_that_only_their_tensors_tell_apart_are_not_pooled_and_the_page_says_so(tmp_path):
    base = _base(tmp_path / "base", 1)
    for name, digest in (("a", "1" * 64), ("b", "1" * 64), ("c", "2" * 64)):
        run = make_run(tmp_path / "runs" / name, seed=ord(name), base=base)
        (run / "state.json").write_text(json.dumps({"base": digest}))
    groups, _ = groups_of(find_runs([tmp_path / "runs"]).runs)
    assert [[run.name for run in group.runs] for group in groups] == [["a", "b"], ["c"]]
    assert [group.settings["base.sha256"] for group in groups] == ["1" * 12, "2" * 12]
    assert "same settings and the same seed differ in their tensors (base.sha256)" in page_of(
        tmp_path / "runs"
    )


def test_bases_of_other_settings_are_named_on_the_page(tmp_path):
    for name, alpha in (("a", 0.7), ("b", 0.3)):
        make_run(tmp_path / "runs" / name, base=_base(tmp_path / name, 1, f"data.alpha={alpha}"))
    assert "stand on bases that differ in more than their seed (base.data.alpha)" in page_of(
        tmp_path / "runs"
    )


def make_tuned(folder, base, seed=1, **scores: float):
    """A run dir of `finetune` with these scores of the target arm; no slot at all scores 0.05."""
    folder.mkdir(parents=True)
    cfg = replace(_composed(command="finetune"), base=str(base), seed=seed)
    OmegaConf.save(OmegaConf.structured(cfg), folder / "config.yaml")
    figures, lines = {"train/steps": 300}, ["language,role,examples,clusters"]
    for code, score in scores.items():
        of, gap = f"test/accuracy/{code}/target", f"difference/accuracy/{code}/target-none"
        figures |= {
            of: score,
            f"{of}/low": score - 0.01,
            f"{of}/high": score + 0.01,
            f"test/accuracy/{code}/none": 0.05,
            gap: score - 0.05,
            f"{gap}/low": 0.0,
            f"{gap}/high": 0.1,
            f"{gap}/p": 0.03,
        }
        lines.append(f"{code},{'source' if code == 'en_XX' else 'added'},161,38")
    (folder / "metrics.json").write_text(json.dumps(figures))
    (folder / "transfer.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_fine_tunings_on_bases_of_other_seeds_are_all_shown_and_pooled_by_base(tmp_path):
    for seed, score in ((1, 0.10), (2, 0.50), (3, 0.20)):
        make_tuned(
            tmp_path / "runs" / f"run{seed}",
            _base(tmp_path / str(seed), seed),
            el_GR=score,
            en_XX=0.8,
        )
    groups, repeats = groups_of(find_runs([tmp_path / "runs"]).runs)
    assert [[run.name for run in group.runs] for group in groups] == [
        ["run1"],
        ["run2"],
        ["run3"],
    ] and not repeats
    assert [group.settings["base.seed"] for group in groups] == ["1", "2", "3"] and len(
        {g.name for g in groups}
    ) == 3
    page, files = render(find_runs([tmp_path / "runs"]))
    assert (
        page.count('aria-label="test accuracy by language and arm"') == 3
        and "in more than their seed" not in page
    )
    rows = [
        r
        for r in csv.DictReader(io.StringIO(files["transfer.csv"]))
        if (r["language"], r["arm"]) == ("el_GR", "target")
    ]
    assert {(r["group"], float(r["mean"])) for r in rows} == {
        (g.name, m) for g, m in zip(groups, (0.1, 0.5, 0.2), strict=True)
    }
    pooled = {
        (r["language"], r["arm"]): r for r in csv.DictReader(io.StringIO(files["bases.csv"]))
    }["el_GR", "target"]
    low, high = stats.t.interval(0.95, 2, loc=0.8 / 3, scale=stats.sem([0.1, 0.5, 0.2]))
    assert float(pooled["mean"]) == pytest.approx(0.8 / 3) and (
        float(pooled["low"]),
        float(pooled["high"]),
    ) == pytest.approx((low, high))
    paired = {
        r["language"]: float(r["p"]) for r in csv.DictReader(io.StringIO(files["bases_paired.csv"]))
    }
    assert paired["el_GR"] == pytest.approx(stats.ttest_1samp([0.05, 0.45, 0.15], 0).pvalue)
    assert (
        "corrected for the 6 tests" in page and "161 in 38" in page and "0.180" in page
    )  # 0.03 of six tests


def test_groups_with_other_vocabularies_are_said_not_to_be_compared(tmp_path):
    """``vocabulary=keep`` beside ``own``; silent on runs with one vocabulary, or unrecorded."""
    for name, alpha, digest in (("a", 0.7, "1" * 64), ("b", 0.3, "2" * 64), ("c", 0.5, None)):
        make_run(tmp_path / name, f"data.alpha={alpha}")
        state = {"data/el_GR": "x"} | ({"tokenizer/el_GR": digest} if digest else {})
        (tmp_path / name / "state.json").write_text(json.dumps(state))
    page = page_of(tmp_path)
    assert (
        "read a language with different vocabularies" in page
        and "el_GR: alpha 0.7: 11111111; alpha 0.3: 22222222" in page
    )
    assert "different vocabularies" not in page_of(tmp_path / "a", tmp_path / "c")


def test_a_run_that_repeats_another_is_named_and_not_counted_twice(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / name, after=1.5)
    (tmp_path / "a" / "metrics.json").unlink()  # of the two the finished one is kept
    (group,), repeats = groups_of(find_runs([tmp_path]).runs)
    assert [run.name for run in group.runs] == ["b"] and list(repeats) == [tmp_path / "a"]
    assert "seed of another run: a (repeats b)" in page_of(tmp_path)


def test_where_the_page_is_written(tmp_path, call, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [make_run(tmp_path / "sweep" / str(job), seed=job) for job in range(2)]
    (tmp_path / "sweep" / "report_files").mkdir()
    (tmp_path / "sweep" / "report_files" / "slots.csv").write_text("of an earlier report")
    (tmp_path / "sweep" / "report_files" / ".written.json").write_text(
        '["slots.csv", "../kept.csv"]'
    )
    (tmp_path / "sweep" / "kept.csv").write_text("mine")
    (tmp_path / "sweep" / "report_files" / "mine.csv").write_text("mine")
    for arguments, place in (
        (runs[:1], runs[0] / "report.html"),
        ([tmp_path / "sweep"], tmp_path / "sweep" / "report.html"),
        (runs, tmp_path / "report" / "report.html"),
        ([*runs, "--out", "new/my.html"], tmp_path / "new" / "my.html"),
    ):
        assert call(*arguments)[0] == 0
        files = {file.name for file in place.with_name(f"{place.stem}_files").iterdir()}
        assert (
            place.is_file()
            and {"results_bpb.tex", "results_bpb.csv", "figures.csv"} <= files
            and "slots.csv" not in files
        )
    assert call(*runs, "--out", "my.pdf")[0] == 2
    assert (tmp_path / "sweep" / "kept.csv").exists() and (
        tmp_path / "sweep" / "report_files" / "mine.csv"
    ).exists()


@pytest.mark.parametrize("mine", ["data.html", "data_files/results_bpb.csv"])
def test_what_no_report_wrote_is_not_replaced(tmp_path, call, mine):
    run = make_run(tmp_path / "run")
    (tmp_path / "data_files").mkdir()
    (tmp_path / mine).write_text("mine")
    status, err = call(run, "--out", tmp_path / "data.html")
    assert status == 2 and str(tmp_path / mine) in err and "no report wrote it" in err
    assert (tmp_path / mine).read_text() == "mine" and not (
        tmp_path / "data_files" / "figures.csv"
    ).exists()


def test_every_figure_of_every_run_is_in_one_long_file_to_the_last_bit(tmp_path):
    for seed in (1, 2):
        make_run(tmp_path / str(seed), seed=seed, after=1 / 3 + seed)
    rows = list(csv.DictReader(io.StringIO(render(find_runs([tmp_path]))[1]["figures.csv"])))
    for seed in (1, 2):
        kept = {row["figure"]: float(row["value"]) for row in rows if row["seed"] == str(seed)}
        assert kept == json.loads((tmp_path / str(seed) / "metrics.json").read_text())


def test_latex_is_escaped_and_has_as_many_cells_as_the_table():
    hostile = r"50 % of a_b & {c} #1 $x^2$ ~ \n – − <>"
    table = Table("two\nlines", ["name", "value"], [[hostile, "1.5"], ["[b", "–"]])
    lines = table.tex().splitlines()
    assert lines[1] == "% two lines" and r"\begin{tabular}{lr}" in lines
    assert lines[6] == (
        r"50 \% of a\_b \& \{c\} \#1 \$x\textasciicircum{}2\$ \textasciitilde{} "
        r"\textbackslash{}n -- $-$ "
        r"\textless{}\textgreater{} & 1.5\\"
    )
    assert lines[7].startswith("{}[b")  # which the line break would take for its argument
    rows = [line for line in lines if line.endswith(r"\\")]
    assert all(len(re.findall(r"(?<!\\)&", row)) == 1 for row in rows) and len(rows) == 3
    assert re.sub(r"\\[a-z]+\{\}|\\.|\$-\$|--", "", tex("\\&%$#_{}~^−–")) == ""


def test_runs_of_several_commands_stand_in_parts_of_their_own(tmp_path):
    make_run(tmp_path / "extension")
    (tmp_path / "base").mkdir()
    OmegaConf.save(OmegaConf.structured(composed()), tmp_path / "base" / "config.yaml")
    (tmp_path / "base" / "metrics.json").write_text(
        json.dumps({"val/loss/en_XX": 3.0, "val/bpb/en_XX": 1.0})
    )
    page, files = render(find_runs([tmp_path]))
    assert page.index(">Pre-training<") < page.index(">Adding languages<")
    assert {
        "pretrain_results_bpb.csv",
        "extension_results_bpb.csv",
        "extension_price.tex",
        "runs.csv",
    } <= files.keys()


SAYS = {kind: f"They are {kind}" for kind in ("pseudo-likelihoods", "exact likelihoods")}


def likelihoods_in(file):
    """What each group's lines of a CSV file say."""
    return {(row["group"], row["likelihood"]) for row in csv.DictReader(io.StringIO(file))}


@pytest.mark.parametrize(
    ("task", "kind", "other"),
    [
        ("mlm", "pseudo-likelihoods", "exact likelihoods"),
        ("clm", "exact likelihoods", "pseudo-likelihoods"),
    ],
)
def test_a_page_says_what_kind_of_likelihoods_it_shows(tmp_path, task, kind, other):
    page, files = render(find_runs([make_run(tmp_path / "run", f"task={task}")]))
    word = re.split("[- ]", kind)[0]
    assert SAYS[kind] in page and other not in page and "<b>" not in page
    assert (
        f"<caption>Bits per byte ({kind})<" in page and f"<caption>Held-out text ({kind})<" in page
    )
    assert (
        f'aria-label="held-out bits per byte ({word}) by step"' in page
        and f"frequency. These are {kind}." in page
    )
    assert f"% Bits per byte ({kind})" in files["results_bpb.tex"]
    for name in ("results_bpb", "price", "figures"):
        assert likelihoods_in(files[f"{name}.csv"]) == {("run", word)}
    assert f",bpb,{word},5.0625,5.0625" in files["base_languages.csv"]


def test_a_page_with_both_kinds_of_likelihoods_says_which_groups_have_which(tmp_path):
    for name, task in (("left", "clm"), ("both sides & more", "mlm"), ("again", "mlm")):
        make_run(
            tmp_path / name,
            f"task={task}",
            f"lang.new_lang.slot_init={'mean' if name == 'again' else 'random'}",
        )
    page, files = render(find_runs([tmp_path]))
    groups = {
        group.runs[0].path.name: group.name for group in groups_of(find_runs([tmp_path]).runs)[0]
    }
    left, both, again = (escape(groups[name]) for name in ("left", "both sides & more", "again"))
    assert f"<b>{left}.</b> Losses are of held-out text: every token" in page
    assert f"<b>{again}, {both}.</b> Nats are of held-out text with a fixed 15 %" in page
    said = f"pseudo-likelihoods: {again}, {both}"
    assert f"<caption>Bits per byte (exact likelihoods: {left}; {said})<" in page
    assert (
        page.count(f"These are exact likelihoods: {left}; {said}.") == 2
    )  # of the curves, and of the price
    assert "held-out loss, nats per predicted token (exact or pseudo) by step" in page
    for name in ("results_bpb", "price", "figures"):
        assert likelihoods_in(files[f"{name}.csv"]) == {
            (groups[name], "exact" if name == "left" else "pseudo") for name in groups
        }


def test_what_an_evaluation_scored_is_said_by_its_model_and_not_by_its_settings(tmp_path):
    make_run(tmp_path / "masked")
    figures = {"val/exact": 1, "val/loss/en_XX": 3.0, "val/bpb/en_XX": 1.0}
    config = OmegaConf.merge(
        OmegaConf.create(asdict(composed())), {"command": "evaluate", "evaluate": {"pll": False}}
    )  # the default task
    for name in ("done", "undone"):
        (tmp_path / name).mkdir()
        OmegaConf.save(config, tmp_path / name / "config.yaml")
    (tmp_path / "done" / "metrics.json").write_text(json.dumps(figures))
    page, files = render(find_runs([tmp_path / "masked", tmp_path / "done"]))
    assert "<b>adding languages: masked.</b> Nats are of held-out text with a fixed 15 %" in page
    assert "<b>evaluation: done.</b> Losses are of held-out text: every token" in page
    assert "These are exact likelihoods. Nats and perplexity are per token" in page
    assert likelihoods_in(files["evaluate_languages.csv"]) == {("done", "exact")}
    assert "likelihoods" not in page_of(tmp_path / "undone")


def keep_passages(run, bits, *, vocabulary="v", text="t"):
    """What each passage cost in a run, of 50 bytes each, and the figures that follow from it."""
    (run / "passages").mkdir()
    record = {
        "bits": list(bits),
        "bytes": [50] * len(bits),
        "crossed": [0] * len(bits),
        "text": text,
        "vocabulary": vocabulary,
    }
    (run / "passages" / "el_GR.json").write_text(json.dumps(record))
    figures = json.loads((run / "metrics.json").read_text())
    mean = float(np.mean(bits)) / 50
    figures |= {
        "val/bpb/el_GR": mean,
        "val/bpb/el_GR/low": mean - 0.037,
        "val/bpb/el_GR/high": mean + 0.037,
    }
    (run / "metrics.json").write_text(json.dumps(figures))


def two_methods(tmp_path, *, other="v", text="t"):
    """Two groups of three seeds each; the second pays a bit a passage more."""
    bits = np.random.default_rng(1).normal(60, 10, 40)
    for i, method in enumerate(("focus", "mean")):
        for seed in (1, 2, 3):
            run = make_run(
                tmp_path / f"{i}{seed}", f"lang.new_lang.embedding_init={method}", seed=seed
            )
            noise = np.random.default_rng(10 * i + seed).normal(0, 0.5, 40)
            keep_passages(
                run, bits + i + noise, vocabulary=other if i else "v", text=text if i else "t"
            )
    return render(find_runs([tmp_path]))


def test_groups_are_compared_by_passage_and_seed_and_told_with_the_digits_that_they_have(tmp_path):
    page, files = two_methods(tmp_path)
    (found,) = csv.DictReader(io.StringIO(files["differences.csv"]))
    assert (found["group"], found["other"], found["passages"], found["seeds"]) == (
        "focus",
        "mean",
        "40",
        "3",
    )
    assert (
        float(found["low"]) < -1 / 50 < float(found["high"]) < 0 and float(found["p_holm"]) < 0.05
    )
    assert "p, Holm over 1" in page and re.search(
        r"<td>1\.\d\d ± 0\.04</td>", page
    )  # and not four digits
    assert "Nats per predicted token (" in page and "<li>not compared" not in page


def test_nats_of_other_vocabularies_are_not_compared_and_bits_per_byte_are(tmp_path):
    page, files = two_methods(tmp_path, other="w")
    assert "el_GR: compare by bits per byte. The groups read with different vocabularies" in page
    assert (
        "results_loss.csv" not in files and "loss, nats" not in page and "differences.csv" in files
    )


def test_what_was_scored_on_other_text_is_refused_in_a_line(tmp_path):
    page, files = two_methods(tmp_path, text="u")
    assert page.count("not compared: focus and mean (el_GR): give both the same text") == 1
    assert "differences.csv" not in files


def test_scores_of_an_earlier_version_are_labelled(tmp_path):
    for i, method in enumerate(("focus", "mean")):
        make_run(tmp_path / str(i), f"lang.new_lang.embedding_init={method}")
    page = page_of(tmp_path)
    assert "focus, mean: score these runs again" in page
    assert "did not keep what each passage costs" in page and "held-out bits per byte" not in page


@pytest.mark.parametrize(
    "change",
    [{"bits": ["x"]}, {"bytes": [0, 1]}, {"crossed": [1]}, {"text": None}, {"bits": float("nan")}],
)
def test_damaged_passages_are_a_fault_of_their_run(run, call, change):
    keep_passages(run, [1.0, 2.0])
    file = run / "passages" / "el_GR.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    status, said = call(run)
    assert status == 2 and "el_GR.json" in said and "finish the run again" in said
