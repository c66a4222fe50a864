"""benchmarks/ablation: the command on generated pictures and tiny networks, and its errors."""

import json
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from evaluation_cases import save, weights
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from andfast.evaluation.pairs import downscale
from andfast.inference.models import load_restorer
from andfast.metrics import luma
from andfast.training.loop import Run
from benchmarks.ablation import campaign, report, rows, score, train
from benchmarks.ablation.__main__ import main, parse
from benchmarks.ablation.photographs import split_photographs

TINY = rows.Size(
    {
        **rows.SIZES["cpu"].settings,
        "batch_size": 2,
        "generator.features": 8,
        "generator.blocks": 1,
        "generator.growth": 4,
        "degradation.channels": 4,
        "data.patch_size": 32,
    },
    {},
    start_steps=2,
    steps=3,
    test_crop=48,
)
TWO_ROWS = ["classical", "and"]


def texture(seed, height, width):
    generator = torch.Generator().manual_seed(seed)
    layers = [
        F.interpolate(torch.rand(1, 3, height // k, width // k, generator=generator), (height, width), mode="bicubic")
        for k in (2, 4, 8, 16)
    ]
    image = sum(layer[0] * k for layer, k in zip(layers, (1, 2, 3, 4), strict=True)) / 10
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    for number in range(10):
        save(texture(number, 64, 56 + number), folder / "photos" / f"{number}.png")
    for number in range(3):
        hr = texture(100 + number, 64, 80)
        save(hr, folder / "pairs" / "HR" / f"{number}.png")
        save(downscale(hr, 4), folder / "pairs" / "LR" / f"{number}.png")
    return folder


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setitem(rows.SIZES, "cpu", TINY)
    monkeypatch.setattr(campaign, "write_sheets", lambda *_: None)  # those of `finished` suffice
    monkeypatch.setattr(report, "curves", lambda *_: None)


def command(folders, output, *arguments):
    start = ["--photos", folders / "photos", "--pairs", folders / "pairs", "--output", output, "--device", "cpu"]
    return main([str(argument) for argument in [*start, "--rows", *TWO_ROWS, *arguments]])


@pytest.fixture(scope="module")
def finished(folders):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rows.SIZES, "cpu", TINY)
        assert command(folders, folders / "finished") == 0
    return folders / "finished"


def results_of(output):
    return report.read(output / "results.json")


def scores_of(results):
    """Results without times."""
    methods = {name: dict(method["seeds"]) for name, method in results["methods"].items()}
    return {
        name: {seed: {**entry, "milliseconds_per_step": None} for seed, entry in seeds.items()}
        for name, seeds in methods.items()
    }


def test_command_writes_results(finished):
    results = results_of(finished)
    assert list(results["methods"]) == ["bicubic", "start", *TWO_ROWS]
    assert results["pairs"] == {"chosen": ["0"], "reported": ["1", "2"]}
    assert results["held_out"] == ["4.png", "9.png"]
    for name in TWO_ROWS:
        entry = results["methods"][name]["seeds"]["0"]
        assert [point["step"] for point in entry["curve"]] == [0, 1, 2, 3]
        assert entry["curve"][-1] == {"step": 3, "clean": entry["clean"], "unseen": entry["unseen"]}
        assert entry["curve"][-1] != {**entry["curve"][-2], "step": 3}
        assert entry["milliseconds_per_step"] > 0
        assert (entry["lr_psnr"] is None) == (name == "classical")
        for source in ("camera", "photographs"):
            assert set(entry["damage"][source]) == set(results["conditions"])
    page = (finished / "results.md").read_text()
    for method in results["methods"].values():
        assert f"| {method['label']} |" in page
    for name in ("curves.png", "pairs.png", "damage.png"):
        assert (finished / name).read_bytes().startswith(b"\x89PNG")


def test_rows_differ_and_share_their_start(finished):
    methods = results_of(finished)["methods"]
    first, second = (methods[name]["seeds"]["0"] for name in TWO_ROWS)
    start = methods["start"]["seeds"]["0"]
    assert first["curve"][0] == second["curve"][0] == {"step": 0, "clean": start["clean"], "unseen": start["unseen"]}
    assert first["damage"] != second["damage"]


def test_second_start_skips_finished_rows(folders, finished, monkeypatch):
    before = scores_of(results_of(finished))
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("nothing is left to train"))
    monkeypatch.setattr(score, "score", lambda *_: pytest.fail("nothing is left to score"))
    assert command(folders, finished) == 0
    assert scores_of(results_of(finished)) == before


def test_interrupted_ablation_continues_with_the_same_results(folders, finished, tmp_path, monkeypatch):
    step, steps = Run._step, []

    def interrupted(self, *arguments, **options):
        if len(steps) == TINY.start_steps + 1:  # in the first row
            os.kill(os.getpid(), signal.SIGTERM)
        steps.append(self.output.name)
        step(self, *arguments, **options)

    monkeypatch.setattr(Run, "_step", interrupted)
    assert command(folders, tmp_path / "output") == 130
    assert steps == ["start", "start", TWO_ROWS[0], TWO_ROWS[0]]
    steps += [""] * 10  # no further signal
    assert command(folders, tmp_path / "output") == 0
    assert steps[14:] == [TWO_ROWS[0], *[TWO_ROWS[1]] * 3]
    assert scores_of(results_of(tmp_path / "output")) == scores_of(results_of(finished))


def test_report_of_an_unfinished_ablation(folders, finished, monkeypatch):
    whole = report.read(finished / "results.json")
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("nothing is to be trained"))
    monkeypatch.setattr(campaign, "is_done", lambda config: train.is_done(config) and config.output.name != "and")
    assert command(folders, finished, "--report", "--seeds", "0", "1", "--json", finished.parent / "part.json") == 0
    part = report.read(finished.parent / "part.json")
    assert part["methods"]["classical"]["seeds"]["0"]["unseen"] == whole["methods"]["classical"]["seeds"]["0"]["unseen"]
    assert {name: list(method["seeds"]) for name, method in part["methods"].items()} == {
        "bicubic": ["all"], "start": ["0"], "classical": ["0"], "and": []
    }  # fmt: skip
    report.write(finished / "results.json", whole)


def test_signal_while_scoring(folders, finished, monkeypatch, capsys):
    monkeypatch.setattr(campaign, "cached_score", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert command(folders, finished) == 130
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "4"], "steps was 3, is 4"),
        (["--start-steps", "3"], "start_steps was 2, is 3"),
        (["--set", "and:adversary.step_size=0.2"], "adversary.step_size was 0.3, is 0.2"),
    ],
)
def test_changed_settings_are_noticed(folders, finished, capsys, arguments, message):
    assert command(folders, finished, *arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "other settings" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--photos", "{folder}/pairs"], "--photos must hold at least 10 photographs of 32x32 pixels or more"),
        (["--photos", "{folder}/none"], "--photos must be a folder of photographs"),
        (["--pairs", "{folder}/photos"], "no pairs of scale 4"),
        (["--pairs", "{folder}/unfit"], "--pairs must fit, 1 in"),
        (["--pairs", "{folder}/shifted"], "LR is shifted relative to HR"),
        (["--start-weights", "{folder}/x2.safetensors"], "scale must be that of init_weights"),
        (["--start-weights", "{folder}/none.safetensors"], "--start-weights must be a weights file"),
        (
            ["--set", *(f"and:adversary.radius_{part}=0" for part in ("kernel", "rest", "noise", "slope"))],
            "row and: adversary.radius_color, radius_kernel, radius_rest, radius_noise or radius_slope must be above 0",
        ),
        (["--set", "adversary.radius=1"], "there is no setting 'adversary.radius'"),
        (["--json", "{folder}/none/results.json"], "--json must be in an existing folder"),
        (["--niqe-parameters", "{folder}/none.npz"], "none.npz does not exist"),
        (["--output", "{folder}/photos"], "--output must be a new folder, or that of an ablation"),
    ],
)
def test_errors_before_training(folders, tmp_path, capsys, monkeypatch, arguments, message):
    for number in range(3):
        for name, shift in (("unfit", 0), ("shifted", 8)):
            hr = texture(200 + number, 128, 128)
            save(hr, folders / name / "HR" / f"{number}.png")
            lr = downscale(hr.roll(shift, dims=2), 4)
            save(lr[:, :-1] if name == "unfit" and number == 1 else lr, folders / name / "LR" / f"{number}.png")
    weights(folders / "x2.safetensors", scale=2)
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("an error must come before any training"))
    texts = [argument.format(folder=folders) for argument in arguments]
    assert command(folders, tmp_path / "output", *texts) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_command_line_errors(capsys):
    base = ["--photos", "a", "--pairs", "b", "--output", "c"]
    for arguments, message in (
        ([*base, "--set", "net.lr"], "--set must be NAME=VALUE or ROW:NAME=VALUE, was net.lr"),
        ([*base, "--set", "none:net.lr=1"], "--set must name a row of classical,"),
        ([*base, "--set", "net.lr={"], "--set must have a YAML value, was net.lr={"),
        ([*base, "--rows", "none"], "invalid choice: 'none'"),
        ([*base, "--seeds", "-1"], "must be at least 0, was -1"),
        ([*base, "--interpolate", "1"], "must be between 0 and 1, was 1"),
        ([*base, "--interpolate", "half"], "invalid number value: 'half'"),
        (base[2:], "--photos"),
    ):
        with pytest.raises(SystemExit) as error:
            parse(arguments)
        assert error.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("size", rows.SIZES, ids="size-{}".format)
def test_every_row_is_valid(folders, tmp_path, monkeypatch, size):
    monkeypatch.undo()
    photographs = split_photographs(folders / "photos", min_size=32, crop_size=48, scale=4)
    plan = train.Plan(tmp_path, size, photographs, 10, 10, None, "cpu", {"": {"net.lr": 0.5}, "and": {"net.lr": 0.25}})
    configs = {row: plan.config(3, row, with_start=False) for row in (None, *rows.ROWS)}
    assert configs[None].adversary.strategy == configs["classical"].adversary.strategy == "none"
    assert configs[None].net.lr == rows.SIZES[size].settings["net.lr"]
    assert {row: config.net.lr for row, config in configs.items() if row} == dict.fromkeys(rows.ROWS, 0.5) | {
        "and": 0.25
    }
    shared = {(config.batch_size, config.data.patch_size, config.net.steps) for config in configs.values()}
    assert len(shared) == 1
    settings = {(str(config.adversary), rows.ROWS[row].test_damage) for row, config in configs.items() if row}
    assert len(settings) == len(rows.ROWS)
    assert len({row.label for row in rows.ROWS.values()}) == len(rows.ROWS)


@pytest.mark.parametrize(("size", "noise", "rest"), [("cpu", 10.0, 0.015), ("gpu", 25.0, 0.03)])
def test_radii_fit_the_channels_of_f(folders, tmp_path, monkeypatch, size, noise, rest):
    monkeypatch.undo()
    assert rows.SIZES[size].row_settings.keys() <= rows.ROWS.keys()
    photographs = split_photographs(folders / "photos", min_size=32, crop_size=48, scale=4)
    plan = train.Plan(tmp_path, size, photographs, 10, 10, None, "cpu", {})
    adversary = {row: plan.config(0, row, with_start=False).adversary for row in rows.ROWS}
    assert adversary["and-fast-random"].random_scale == {"noise": noise}
    assert adversary["and-random"].radius_rest == rest


def test_interpolated_weights_are_scored_once(folders, finished, monkeypatch):
    shares = ["--interpolate", "0.7", "0.4"]
    assert command(folders, finished, *shares) == 0
    methods = results_of(finished)["methods"]
    start, row = methods["start"]["seeds"]["0"], methods["and"]["seeds"]["0"]
    assert [entry["share"] for entry in row["interpolated"]] == [0.4, 0.7]
    for source in score.SOURCES:  # so short a training that quality is linear in the weights
        ends = start["unseen"][source], row["unseen"][source]
        for entry in row["interpolated"]:
            assert min(ends) - 0.05 <= entry["unseen"][source] <= max(ends) + 0.05
    assert (finished / "trade_off.png").is_file()
    assert "| AND | held-out photographs |" in (finished / "results.md").read_text()
    monkeypatch.setattr(score, "score_damage", lambda *_: pytest.fail("nothing is left to score"))
    assert command(folders, finished, *shares) == 0
    assert command(folders, finished, "--report", "--interpolate", "0.5") == 0
    assert "interpolated" not in results_of(finished)["methods"]["and"]["seeds"]["0"]


def test_bound_trains_on_the_damage_of_the_test(folders, tmp_path, monkeypatch):
    calls = []
    damage = train.random_damage

    def counted(hr, scale, rng):
        calls.append(hr.shape)
        return damage(hr, scale, rng)

    monkeypatch.setattr(train, "random_damage", counted)
    assert command(folders, tmp_path / "output", "--rows", "test-damage", "--seeds", "0") == 0
    assert calls == [(3, 32, 32)] * (TINY.settings["batch_size"] * TINY.steps)
    assert results_of(tmp_path / "output")["methods"]["test-damage"]["seeds"]["0"]["lr_psnr"] < 45


def test_help_lists_rows(capsys):
    with pytest.raises(SystemExit) as error:
        parse(["--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    for name, row in rows.ROWS.items():
        assert name in text
        assert row.label in text


def test_start_weights_replace_the_start(folders, tmp_path):
    file = weights(tmp_path / "weights" / "g.safetensors")
    assert command(folders, tmp_path / "output", "--start-weights", file, "--rows", TWO_ROWS[0], "--steps", "1") == 0
    results = results_of(tmp_path / "output")
    assert results["start_steps"] is None
    assert not (tmp_path / "output" / "seed-0" / "start").exists()
    start = results["methods"]["start"]["seeds"]["0"]
    first = results["methods"][TWO_ROWS[0]]["seeds"]["0"]["curve"][0]
    assert first == {"step": 0, "clean": start["clean"], "unseen": start["unseen"]}


def test_non_finite_training_does_not_stop_the_others(folders, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(rows.ROWS, TWO_ROWS[0], rows.Row("diverging", "classical_pooling", {"net.lr": 1e30}))
    assert command(folders, tmp_path / "output", "--steps", "2") == 0
    first, second = (results_of(tmp_path / "output")["methods"][name]["seeds"]["0"] for name in TWO_ROWS)
    assert "step 2" in first["failed"]
    assert "unseen" not in first
    assert second["unseen"]["camera"] > 20
    assert f"- diverging, seed 0: {first['failed']}" in (tmp_path / "output" / "results.md").read_text()
    assert f"  {first['failed']}" in capsys.readouterr().out


def test_split_of_photographs(folders, tmp_path):
    for number in range(11):
        save(texture(number, 40, 48), tmp_path / "a [x]" / f"{number:02}.png")
    (tmp_path / "a [x]" / "00.png").write_bytes(b"no picture")
    save(texture(0, 20, 48), tmp_path / "a [x]" / "small.png")
    photographs = split_photographs(tmp_path / "a [x]", min_size=32, crop_size=38, scale=4)
    assert list(photographs.held_out) == ["05.png", "10.png"]
    assert list(photographs.trained) == [f"{number:02}.png" for number in (1, 2, 3, 4, 6, 7, 8, 9)]
    assert photographs.crops.shape == (2, 3, 36, 36)
    assert torch.equal(photographs.crops[0], texture(5, 40, 48)[:, 2:38, 6:42])


def test_trainings_never_see_the_held_out(finished):
    record = json.loads((finished / "seed-0" / "rows" / TWO_ROWS[0] / "images.json").read_text())
    assert sorted(record["images"]) == [f"{number}.png" for number in (0, 1, 2, 3, 5, 6, 7, 8)]


def test_scores_against_skimage(folders):
    crops = torch.stack([texture(7, 48, 48), texture(8, 48, 48)])
    tests, notes = score.open_tests(folders / "pairs", crops, crop_size=48, scale=4, niqe_parameters=None, device="cpu")
    assert any("NIQE is left out" in note for note in notes)
    result = score.score(None, tests)
    restorer = load_restorer("bicubic", scale=4)

    def y(images):
        return luma(images)[:, 0, 4:-4, 4:-4].numpy()

    hr = torch.stack([texture(100 + number, 64, 80)[:, 8:56, 16:64] for number in (1, 2)])
    assert torch.equal(tests.hr["camera"], hr)
    for name, lr in tests.lr["photographs"].items():
        sr = (restorer.restore(lr.float() / 255).clamp(0, 1) * 255).round().to(torch.uint8)
        psnr = [peak_signal_noise_ratio(a, b, data_range=255) for a, b in zip(y(crops), y(sr), strict=True)]
        assert result["damage"]["photographs"][name] == pytest.approx(sum(psnr) / 2, abs=1e-9)
    for source, values in result["damage"].items():
        damage = [value for name, value in values.items() if name != "clean"]
        assert result["unseen"][source] == pytest.approx(sum(damage) / len(damage))
        assert result["clean"][source] == values["clean"]
    hr = texture(100, 64, 80)[None]
    sr = (restorer.restore(downscale(hr[0], 4)[None].float() / 255).clamp(0, 1) * 255).round().to(torch.uint8)
    entry = result["pairs"]["0"]
    assert entry["psnr"] == pytest.approx(peak_signal_noise_ratio(y(hr)[0], y(sr)[0], data_range=255), abs=1e-9)
    ssim = structural_similarity(
        y(hr)[0], y(sr)[0], data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert entry["ssim"] == pytest.approx(ssim, abs=2e-2)  # skimage averages over padded windows as well
    rgb = [image[0, :, 4:-4, 4:-4].numpy() for image in (hr, sr)]
    assert entry["psnr_rgb"] == pytest.approx(peak_signal_noise_ratio(*rgb, data_range=255), abs=1e-9)
