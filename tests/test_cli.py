"""The command line as other programs see it: exit codes, one line of error, files that can be opened."""

from __future__ import annotations

import builtins
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from PIL import Image

import diffcache
import diffcache.__main__
from diffcache import cli
from diffcache.cli_stopping import NOTHING, StoppedError, kept_answers, stoppable
from diffcache.schedules.files import read_calibration, write_calibration
from diffcache.zoo import list_language_models, load_pipeline
from diffcache.zoo.loading import WEIGHTS

ROOT = Path(diffcache.__file__).parents[1]
# One thread: these models are tiny, and the tests may share their cores. Offline: no test may wait for a network.
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
# Importing torch and diffusers takes seconds, so one process does it and forks for every command line. Each command
# still runs in a process of its own, with its own streams and exit code.
FORKER = """
import gc, json, os, signal, sys, time, traceback
from diffcache import cli
from diffcache.cli_stopping import NOTHING, StoppedError, kept_answers, stoppable
import diffcache.media.runs, diffcache.media.session, diffcache.media.terminal, diffcache.zoo.world
import diffusers.loaders, torchmetrics.functional.image
gc.freeze()
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests may ignore it
        os.chdir(job["folder"])
        for number, path in enumerate(job["streams"], 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = 1
        try:
            cli.main(job["arguments"])
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # taking all of torch down again would cost a second each time
    ended, state = 0, 0
    while job["interrupt"] and not ended and job["interrupt"] not in open(job["streams"][0]).read():
        time.sleep(0.002)
        ended, state = os.waitpid(child, os.WNOHANG)
    if not ended:
        if job["interrupt"]:
            os.kill(child, signal.SIGINT)
        state = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(state), flush=True)
"""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of error; anything else on stderr, or a traceback anywhere, fails."""
        assert self.code != 0, self.out
        assert "Traceback" not in self.out + self.err
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0].removeprefix("error: ")


@pytest.fixture(scope="module")
def forker():
    if not hasattr(os, "fork"):
        yield None
        return
    with subprocess.Popen(
        [sys.executable, "-c", FORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def run(forker, tmp_path):
    def call(*arguments: str, interrupt: str = "") -> Answer:
        """``interrupt``: what is printed when the process gets Ctrl-C."""
        if forker is None:
            if interrupt:
                pytest.skip("needs os.fork")
            return direct(*arguments, folder=tmp_path)
        streams = [tmp_path / name for name in (".stdout", ".stderr")]
        for stream in streams:
            stream.write_text("")
        job = {"folder": str(tmp_path), "arguments": arguments, "streams": list(map(str, streams))}
        job["interrupt"] = interrupt
        forker.stdin.write(json.dumps(job) + "\n")
        forker.stdin.flush()
        code = int(forker.stdout.readline())
        return Answer(code, *(stream.read_text(encoding="utf-8") for stream in streams))

    return call


def direct(*arguments: str, folder: Path, module: str = "diffcache.cli") -> Answer:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, cwd=folder, env=ENVIRONMENT
    )
    return Answer(done.returncode, done.stdout, done.stderr)


# -- what it says ------------------------------------------------------------------------------------------------------


def test_help_and_version_need_no_torch(tmp_path):
    answer = direct("--help", folder=tmp_path)
    assert (answer.code, answer.err) == (0, "")
    assert "diffcache sample --compare" in answer.out
    code = "import sys; from diffcache import cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, cwd=tmp_path).returncode == 0
    assert direct("--version", folder=tmp_path, module="diffcache").out.strip() == f"diffcache {diffcache.__version__}"


def test_help_of_sample_teaches(run):
    answer = run("sample", "--help")
    assert answer.code == 0
    assert "Examples" in answer.out
    for option in ("--actions", "--compare", "--set", "--prompt", "--out"):
        assert option in answer.out


def test_without_arguments_it_shows_help(run):
    answer = run()
    assert (answer.code, answer.err) == (0, "")
    assert "Usage" in answer.out


def test_methods_and_models_are_listed(run):
    answer = run("methods")
    assert answer.code == 0
    for name, config in diffcache.list_methods().items():
        assert name in answer.out
        assert all(preset in answer.out for preset in config.presets)
    answer = run("models")
    assert answer.code == 0
    assert all(name in answer.out for name in {**diffcache.list_models(), **list_language_models()})
    assert "downloaded" in answer.out  # a narrow terminal breaks the cell


def test_a_method_is_explained_field_by_field(run):
    for name, config in diffcache.list_methods().items():
        facts = json.loads(run("methods", name, "--json").out)
        assert set(facts["fields"]) == {f.name for f in dataclasses.fields(config)}
        assert all(field["meaning"] for field in facts["fields"].values()), name
        assert facts["memory"]
    answer = run("methods", "fbcache")
    assert "relative change, >= 0" in answer.out
    assert "Preset fbcache:dbcache: first=8" in answer.out


def test_listings_are_json_for_scripts(run):
    assert set(json.loads(run("methods", "--json").out)) == set(diffcache.list_methods())
    models = json.loads(run("models", "--json").out)
    assert set(models) == {*diffcache.list_models(), *list_language_models()}
    assert models["tiny-llada"]["here"] == "yes"
    assert models["tiny-wan"]["here"] == "yes"
    doctor = json.loads(run("doctor", "--json").out)
    assert doctor["healthy"]
    assert {"torch", "diffusers", "cpu", "mp4", "tiny-dit"} <= {check["name"] for check in doctor["checks"]}


def test_info_says_what_works_and_why_the_rest_does_not(run):
    answer = run("info", "tiny-dit")
    assert answer.code == 0
    assert "DiTTransformer2DModel" in answer.out
    assert "6 spatial" in answer.out
    told = " ".join(answer.out.split())  # other tests' plugins may have long names, which narrow the notes
    assert "for 50 steps it is here; for others: diffcache calibrate --model tiny-dit --method auto" in told
    known = json.loads(run("info", "tiny-dit", "--json").out)
    pipe = load_pipeline("tiny-dit")
    for name, told in known["methods"].items():
        answer = diffcache.supports(pipe, name)
        assert told["status"] == answer.status
        assert answer.reason in told["note"]
    assert known["methods"]["fbcache:dbcache"]["status"] == "refused"
    assert "diffcache calibrate" in known["methods"]["magcache"]["note"]


def test_info_with_a_method_estimates_what_a_run_holds(run):
    arguments = ("--method", "taylorseer", "--set", "order=2", "--set", "cache_dtype=bfloat16")
    told = json.loads(run("info", "tiny-dit", *arguments, "--steps", "20", "--json").out)["estimate"]
    pipe = diffcache.accelerate_pipeline(load_pipeline("tiny-dit"), "taylorseer", order=2, cache_dtype="bfloat16")
    pipe.set_progress_bar_config(disable=True)
    pipe([3], num_inference_steps=20)
    assert told["cached_bytes"] == sum(s.cached_bytes for s in pipe.diffcache.stats().segments)
    answer = run("info", "tiny-dit", *arguments)
    assert "of its weights" in answer.out
    assert "is refused" not in answer.out
    refused = run("info", "tiny-dit", *arguments, "--set", "memory=1KB")
    assert "A run with memory=1KB is refused" in refused.out


def test_info_with_a_method_says_what_its_table_holds(run, tmp_path):
    answer = run("info", "tiny-dit", "--method", "auto:speedup=4")
    assert (answer.code, answer.err) == (0, "")
    assert re.search(r"levels +none was looked at", answer.out)
    assert re.search(r"4.26x +11 of 50 computed: 42.7 dB", answer.out)
    decisions = re.search(r"decisions +([Fpc]{50})\n", answer.out).group(1)
    assert decisions.count("F") == 11
    known = read_calibration(load_pipeline("tiny-dit").calibrations["auto"])
    ((name, expert),) = known.experts.items()
    for plans, expected in ((0, "no level helped"), (2, "helped: some plans compute a share")):
        facts = {**expert.facts, "levels": [{"share": 0.25, "time": 1.08, "left": 0.88, "plans": plans}]}
        write_calibration(replace(known, experts={name: replace(expert, facts=facts)}), tmp_path / "a.safetensors")
        told = json.loads(run("info", "tiny-dit", "--method", "auto", "--set", "schedule=a.safetensors", "--json").out)
        assert told["table"]["facts"]["levels"].startswith(expected)
        assert told["table"]["facts"]["a quarter of the tokens"].startswith("1.08 of a step's time")
    answer = run("info", "tiny-dit", "--method", "auto", "--set", "schedule=a.safetensors", "--steps", "9")
    assert (answer.code, "steps: made for 50, but here it is 9" in answer.line) == (2, True)
    assert (
        "diffcache calibrate --model tiny-wan --method magcache" in run("info", "tiny-wan", "--method", "magcache").out
    )


def test_info_of_a_model_that_is_not_here(run):
    assert "not in the local cache; try: diffcache info tiny-wan" in run("info", "wan2.1").out
    answer = run("info", "wan2.1", "--method", "fora")
    assert answer.code == 1
    assert "not in the local cache; try: diffcache info tiny-wan" in answer.line


def test_info_names_the_command(run):
    answer = run("info", "wan2.1")
    assert answer.code == 0
    assert "Wan-AI/Wan2.1-T2V-1.3B-Diffusers" in answer.out
    assert "diffcache sample --model wan2.1" in answer.out


def test_doctor_loads_the_embedded_models(run):
    answer = run("doctor")
    assert answer.code == 0, answer.out
    known = {**diffcache.list_models(), **list_language_models()}
    assert answer.out.count("loads") == sum(entry.embedded for entry in known.values())


def test_a_reader_that_has_gone_is_no_error(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "diffcache", "methods", "none"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=ENVIRONMENT)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_narrow_terminal_loses_nothing(monkeypatch, capsys):
    from diffcache.media.terminal import tabulate

    rows = [("worldcache", "output", "none"), ("magcache", "body", "needed")]
    for width, lines in ((80, 6), (20, 6)):
        monkeypatch.setenv("COLUMNS", str(width))
        tabulate(("method", "site", "calibration"), rows)
        out = capsys.readouterr().out
        assert all(word in out for row in rows for word in row)
        assert len(out.splitlines()) == lines
    assert out.startswith("worldcache\n  site: output\n  calibration: none\n")


# -- wrong arguments ---------------------------------------------------------------------------------------------------

BAD = {
    "model": (["--model", "tiny-wrld"], "unknown model 'tiny-wrld': did you mean 'tiny-world'?"),
    "method": (["--method", "wordcache"], "unknown method 'wordcache': did you mean 'worldcache'?"),
    "field": (["--set", "treshold=0.1"], "unknown field 'treshold': did you mean 'threshold'?"),
    "field in method": (["--method", "interval:intervall=2"], "unknown field 'intervall': did you mean 'interval'?"),
    "preset": (["--method", "worldcache:ether"], "no preset 'ether', known: aether"),
    "setting": (["--set", "max_skip"], "set: 'max_skip' is not a field, must be KEY=VALUE"),
    "value": (["--set", "warmup=-1"], "warmup: -1 is out of range"),
    "value in method": (["--method", "interval:interval=0"], "interval: 0 is out of range"),
    "not a number": (
        ["--set", "computed=.nan"],
        "computed: nan is out of range, must be a whole number >= 1 or a",
    ),
    "infinite": (["--set", "alpha=inf"], "alpha: inf is out of range, must be a number from 0.1 to 10"),
    "set twice": (["--set", "computed=8", "--set", "computed=9"], "computed: given twice, as 8 and 9"),
    "twice in method": (["--method", "worldcache:computed=8,computed=9"], "computed: given twice, as 8 and 9"),
    "two presets": (["--method", "worldcache:aether,voyager"], "preset: given twice, as 'aether' and 'voyager'"),
    "empty method": (["--method", ""], "unknown method ''"),
    "empty model": (["--model", ""], "unknown model ''"),
    "too many steps": (["--steps", "99999999999"], "steps: 99999999999 is out of range"),
    "method file": (["--method", "none.yaml"], "none.yaml: No such file"),
    "steps 0": (["--steps", "0"], "steps: 0 is out of range, must be a whole number from 1 to 100000"),
    "steps -4": (["--steps", "-4"], "steps: -4 is out of range"),
    "steps ten": (["--steps", "ten"], "steps: 'ten' is not right: "),
    "seed": (["--seed", "-1"], "seed: -1 is out of range"),
    "guidance": (["--guidance", "nan"], "guidance: nan is out of range"),
    "height": (["--height", "0"], "height: 0 is out of range"),
    "fps": (["--fps", "0"], "fps: 0.0 is out of range"),
    "suffix": (["--out", "a.bmp"], "out: 'a.bmp' has the suffix '.bmp', must end in .png, .gif or .mp4"),
    "no suffix": (["--out", "a"], "out: 'a' has no suffix"),
    "no folder": (["--out", ".stdout/a.png"], "out: '.stdout/a.png' cannot be written"),
    "actions": (["--actions", "F8Z"], "actions: unknown 'Z' at position 3; known letters are F (forward)"),
    "no actions": (["--actions", " "], "actions: the string is empty"),
    "image": (["--image", "none.png"], "image: 'none.png' cannot be read"),
    "dtype": (["--dtype", "float8"], "unknown dtype 'float8'"),
    "device": (["--device", "tpu"], "device: 'tpu' is not a device, must be one of: cpu"),
    "option": (["--stepz", "4"], "No such option: --stepz"),
    "clip": (["--clip", "9999"], "clip: 9999 is out of range"),
    "prompt of a world": (["--prompt", "a cat"], "prompt: 'a cat' cannot be used, WorldPipeline takes no prompt"),
    "size of a world": (["--width", "640"], "width: 640 cannot be used"),
    "no prompt": (["--model", "wan2.1"], "prompt: none given, WanPipeline needs one"),
    "no image": (
        ["--model", "cogvideox-5b-i2v", "--prompt", "a cat"],
        "image: none given, CogVideoXImageTo",
    ),
    "class": (["--model", "dit-xl-256", "--prompt", "cat"], "prompt: 'cat' is not a class, must be a class number"),
    "actions of a video": (["--model", "tiny-wan", "--actions", "F8"], "actions: 'F8' cannot be used, WanPipeline"),
}


@pytest.mark.parametrize("case", BAD)
def test_wrong_arguments_answer_with_one_line_and_exit_2(run, case, tmp_path):
    arguments, expected = BAD[case]
    answer = run("sample", *arguments)
    assert answer.code == 2
    assert expected in answer.line
    assert not list(tmp_path.glob("**/*.png"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["sampel"], "No such command 'sampel'"),
        (["info", "wan2"], "unknown model 'wan2': did you mean 'wan2."),
        (["info"], "Missing argument"),
        (["methods", "wordcache"], "unknown method 'wordcache'"),
        (["info", "tiny-dit", "--method", "wordcache"], "unknown method 'wordcache'"),
        (["info", "tiny-dit", "--method", "fbcache:dbcache"], "method: fbcache does not work on tiny-dit: first: 8"),
        (["info", "tiny-dit", "--method", "fora", "--set", "memory=much"], "memory: 'much' is not a size"),
        (["info", "tiny-dit", "--method", "fora:cache_dtype=fp7"], "cache_dtype: unknown value 'fp7'"),
        (["info", "tiny-dit", "--method", "fora", "--height", "640"], "height: 640 cannot be used"),
        (["info", "tiny-wan", "--method", "fora", "--height", "7"], "WanPipeline: `height` and `width` have to be div"),
        (["info", "tiny-wan", "--height", "48"], "height: 48 cannot be used, it is for an estimate of memory"),
        (["info", "tiny-llada", "--set", "warmup=1"], "set: ['warmup=1'] cannot be used, it is for an estimate"),
    ],
)
def test_other_commands_answer_alike(run, arguments, expected):
    answer = run(*arguments)
    assert answer.code == 2
    assert expected in answer.line


def test_a_damaged_weight_file_is_named(run, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS / "tiny-world", folder)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    answer = run("sample", "--model", "model", "--steps", "1")
    assert answer.code == 2
    assert re.match(r"model: model/transformer/diffusion_pytorch_model.safetensors: the file is damaged", answer.line)


def test_a_folder_that_is_no_model_is_a_wrong_argument(run, tmp_path):
    (tmp_path / "empty").mkdir()
    answer = run("sample", "--model", "empty")
    assert answer.code == 2
    assert answer.line.startswith("model: empty")


def test_the_module_itself_exits_with_2(tmp_path):
    answer = direct("sample", "--steps", "0", folder=tmp_path)
    assert (answer.code, answer.line) == (2, "steps: 0 is out of range, must be a whole number from 1 to 100000")


# -- what goes wrong although the arguments are right ------------------------------------------------------------------


def test_a_hub_model_without_network_names_the_embedded_one(run):
    answer = run("sample", "--model", "wan2.1", "--prompt", "a cat surfing")
    assert answer.code == 1
    assert "wan2.1" in answer.line
    assert "try --model tiny-wan" in answer.line


@pytest.mark.parametrize(
    ("error", "code", "expected"),
    [
        (RuntimeError("CUDA out of memory. Tried\nto allocate"), 1, "error: out of memory"),
        (
            ModuleNotFoundError("none", name="cache_dit.x"),
            1,
            "error: the package cache-dit is not installed: pip install",
        ),
        (MemoryError(), 1, "error: out of memory"),
        (RuntimeError("two\nlines"), 1, "error: RuntimeError: two lines (--debug shows where)"),
        (diffcache.UnsupportedModelError("no blocks"), 2, "error: no blocks"),
        (KeyboardInterrupt(), 130, "interrupted: nothing was written; the same command begins anew"),
    ],
)
def test_failures_are_one_line(monkeypatch, capsys, error, code, expected):
    def fail(arguments):
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == code
    err = capsys.readouterr().err
    assert err.startswith(expected)
    assert err.count("\n") == 1


DIT = ("--model", "tiny-dit", "--steps", "4")
INTERRUPTED = {
    "sample": (
        ["sample", "--model", "tiny-wan", "--steps", "4", "--compare", "--repeats", "9"],
        "warm-up 1/2",
        "nothing was written; the same command begins anew",
    ),
    "calibrate": (
        ["calibrate", *DIT, "--method", "auto"],
        "dense run 2/8",
        r"kept in out/tiny-dit-auto\.\w+\.partial: what is measured so far; the same command goes on from there",
    ),
    "calibrate by plain runs": (
        ["calibrate", "--model", "tiny-wan", "--steps", "4", "--method", "magcache", "--seeds", "0,1,2,3,4,5,6,7"],
        "dense run 1/8",
        "nothing was written; the same command begins anew",
    ),
    "report": (
        ["report", *DIT, "--methods", "none"],
        "seed 2/8",
        "kept in out/report-tiny-dit: 1 seed; the same command with --resume goes on from there",
    ),
}


@pytest.mark.parametrize("case", INTERRUPTED)
def test_ctrl_c_says_in_one_line_what_is_kept(run, case, tmp_path):
    arguments, begun, expected = INTERRUPTED[case]
    answer = run(*arguments, interrupt=begun)
    assert (answer.code, answer.err.count("\n")) == (130, 1)
    assert re.match(f"interrupted: {expected}", answer.err)
    assert ("kept in" in expected) == bool(list(tmp_path.glob("out/*")))


def test_ctrl_c_while_the_command_line_itself_is_imported(monkeypatch, capsys):
    real = builtins.__import__

    def interrupted(name, *args, **kwargs):
        if name == "cli":  # from .cli import ...
            raise KeyboardInterrupt
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", interrupted)
    with pytest.raises(SystemExit) as stopped:
        diffcache.__main__.main()
    assert stopped.value.code == 130
    assert capsys.readouterr().err == f"interrupted: {NOTHING}\n"


def test_what_was_kept_at_ctrl_c_is_not_done_again(run, tmp_path):
    arguments, *_ = INTERRUPTED["calibrate"]
    assert run(*arguments, interrupt="dense run 2/8").code == 130
    answer = run(*arguments, interrupt="dense run 4/8")
    assert answer.code == 130
    assert "dense run 1/8" not in answer.out
    assert len(list(tmp_path.glob("out/*"))) == 1


def test_answers_are_kept_at_ctrl_c(tmp_path):
    path = tmp_path / "answers.jsonl"
    for text, expected in (
        ("", NOTHING),
        ('{}\n{}\n{"cut', f"kept in {path}: 2 of 9 answers; the same command with --r"),
    ):
        path.write_text(text)
        with pytest.raises(StoppedError, match=re.escape(expected)), stoppable(lambda: kept_answers(path, 9, False)):
            raise KeyboardInterrupt


def test_debug_shows_the_traceback(run):
    answer = run("--debug", "sample", "--steps", "0")
    assert answer.code == 1
    assert "Traceback" in answer.err


# -- pictures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "gif", "mp4"])
def test_tiny_wan_is_sampled(run, tmp_path, suffix):
    target = tmp_path / f"new/turn.{suffix}"
    answer = run("sample", "--model", "tiny-wan", "--prompt", "turns left", "--steps", "4", "--out", str(target))
    assert (answer.code, answer.err) == (0, "")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", answer.out), "control characters in a pipe"
    assert re.search(r"\n  cond +[Fc]{4}  \d of 4 computed\n  uncond +[Fc]{4}", answer.out)
    assert re.search(rf"written to +{re.escape(str(target))}\n", answer.out)
    check_video(target, 9, (256, 192))


def check_video(path: Path, count: int, size: tuple[int, int]) -> None:
    if path.suffix == ".png":
        with Image.open(path) as image:
            assert image.width > 8 * 100
    elif path.suffix == ".gif":
        with Image.open(path) as image:
            assert (image.n_frames, image.size) == (count, size)
    else:
        import av

        with av.open(str(path)) as container:
            frames = list(container.decode(video=0))
        assert (len(frames), (frames[0].width, frames[0].height)) == (count, size)


def test_the_default_compares_a_world_with_dense(run, tmp_path):
    answer = run("sample", "--steps", "6", "--actions", "F4L4", "--compare", "--repeats", "1")
    assert (answer.code, answer.err) == (0, "")
    assert re.search(r"denoiser +\d+\.\d\dx faster: ", answer.out)
    assert re.search(r"whole pipeline +\d+\.\d\dx faster: ", answer.out)
    assert re.search(r"PSNR \d+\.\d dB, SSIM [01]\.\d{4}", answer.out)
    assert re.search(r"cond +[Fc]{6}  \d of 6 computed", answer.out)
    with Image.open(tmp_path / "out" / "tiny-world.png") as image:
        assert image.width >= 900
        assert image.height >= 600


def test_comparison_moves(run, tmp_path):
    arguments = ["--model", "tiny-wan", "--method", "interval", "--set", "interval=2", "--steps", "6", "--compare"]
    answer = run("sample", *arguments, "--repeats", "1", "--out", "pair.gif")
    assert (answer.code, answer.err) == (0, "")
    with Image.open(tmp_path / "pair.gif") as image:
        assert image.n_frames == 9
        assert image.width > 2 * 320


def test_one_seed_gives_one_picture(run, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        arguments = ["--actions", "F2", "--steps", "2", "--method", "none", "--seed", seed, "--out", f"{name}.gif"]
        assert run("sample", *arguments).code == 0
    a, b, c = ((tmp_path / f"{name}.gif").read_bytes() for name in "abc")
    assert a == b
    assert a != c


def test_a_folder_of_a_bare_pipeline_is_sampled(run, tmp_path):
    from .models import dit_pipeline

    dit_pipeline().save_pretrained(tmp_path / "dit")
    answer = run("sample", "--model", "dit", "--prompt", "1", "--steps", "4", "--compare", "--repeats", "1")
    assert (answer.code, answer.err) == (0, "")
    with Image.open(tmp_path / "out" / "dit.png") as image:
        assert image.width >= 900
