"""[13] A signal ends a run after the step at hand, with a checkpoint from which it goes on bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import threading

import pytest
from same_bits import differences

import halter
from halter.files.runs import RunFolder
from halter.files.tensors import read_tensors
from halter.run.signals import Stopped, Stops

STEPS = 12


@pytest.fixture
def recipe(heavy_data, tmp_path):

    def make(name):
        return {
            "model": {"path": str(heavy_data.base), "device": "cpu"},
            "method": {"name": "lora", "r": 2, "dropout": 0.1},
            "data": {
                "train": f"{heavy_data.train}#24",
                "validation": f"{heavy_data.test}#2",
                "template": "alpaca",
                "max_length": 320,
                "on_long": "cut",
            },
            "train": {
                "per_device_train_batch_size": 2,
                "max_steps": STEPS,
                "learning_rate": 1e-2,
                "eval_steps": 4,
                "save_steps": 100,
                "early_stopping_patience": 50,
            },
            "output_dir": str(tmp_path / name),
        }

    return make


def steps_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


def interrupted(recipe, number, draw, monkeypatch, resume, seconds=0.05):
    """The exit code of a run that gets a signal at a random moment of its steps, each of which takes about ``seconds``;
    None where it ended before."""
    log, timers, after = RunFolder.log, [], draw.randrange(0, 4)

    def log_and_aim(self, record):
        log(self, record)
        if "tokens_per_second" in record:
            steps.append(record["step"])
        if len(steps) > after and not timers:
            delay = draw.uniform(0, 1.5) * seconds
            timers.append(threading.Timer(delay, os.kill, (os.getpid(), number)))
            timers[0].start()

    steps = []
    former = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)}  # late ones hit nobody
    try:
        with monkeypatch.context() as aimed:
            aimed.setattr(RunFolder, "log", log_and_aim)
            halter.train(recipe, say=lambda _: None, resume=resume)
        return None
    except KeyboardInterrupt:
        return 130
    except SystemExit as gone:
        return gone.code
    finally:
        for timer in timers:
            timer.join()
        for n, handler in former.items():
            signal.signal(n, handler)


def random_moments(recipe, number, moments, monkeypatch, tmp_path):
    """(runs stopped, steps lost, codes) over as many whole runs as it takes; each must end with equal bits."""
    draw, whole = random.Random(number.name), halter.train(recipe("whole"), say=lambda _: None)
    stopped, lost, codes = 0, 0, set()
    while stopped < moments:
        name = f"{number.name}-{stopped}"
        run, code = RunFolder(tmp_path / name), 0
        while code is not None:
            code = interrupted(recipe(name), number, draw, monkeypatch, bool(run.checkpoints()))
            if code is not None:
                codes.add(code)
                stopped, lost = stopped + 1, lost + abs(steps_of(run.path)[-1] - run.checkpoints()[-1][0])
        ends = [read_tensors(folder / "adapter" / "adapter_model.safetensors") for folder in (whole, run.path)]
        assert differences(*ends) == []
    return stopped, lost, codes


@pytest.mark.parametrize(
    "name, moments",
    [
        ("SIGINT", 4),
        ("SIGTERM", 4),
        pytest.param("SIGINT", 50, marks=pytest.mark.nightly),
        pytest.param("SIGTERM", 50, marks=pytest.mark.nightly),
    ],
)
def test_signals_at_random_moments_lose_no_step(recipe, name, moments, monkeypatch, tmp_path):
    stopped, lost, codes = random_moments(recipe, getattr(signal, name), moments, monkeypatch, tmp_path)
    print(f"{name}: {stopped} runs stopped, {lost} steps lost, exit codes {codes}")
    assert stopped >= moments and lost == 0 and codes == {{"SIGINT": 130, "SIGTERM": 143}[name]}


def test_the_first_waits_for_what_is_whole_and_the_second_does_not():
    said, seen = [], []
    with pytest.raises(Stopped) as caught, Stops(said.append) as stops:
        with stops.whole():
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append("step done")
        seen.append("never")
    assert seen == ["step done"] and caught.value.number == signal.SIGTERM and len(said) == 1
    assert isinstance(caught.value.as_exit(), SystemExit) and caught.value.as_exit().code == 143
    assert isinstance(Stopped(signal.SIGINT).as_exit(), KeyboardInterrupt)
    with pytest.raises(Stopped), Stops(said.append) as stops, stops.whole():
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append("waits")
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append("never")
    assert seen == ["step done", "waits"]
    with pytest.raises(Stopped), Stops(said.append):
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append("never")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_in_the_last_save_leaves_the_checkpoint_before(recipe, monkeypatch, tmp_path):
    """The first comes in step 5; while its checkpoint is written the second comes, and nothing half is left."""
    from halter.files import runs

    made = recipe("run")
    made["train"] |= {"save_steps": 3}
    write, log, calls = runs.write_tensors, RunFolder.log, []

    def signalling(path, tensors, **how):
        write(path, tensors, **how)
        if "step-0000005" in str(path):
            os.kill(os.getpid(), signal.SIGTERM)

    def log_and_signal(self, record):
        log(self, record)
        if record["step"] == 5:
            calls.append(record)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runs, "write_tensors", signalling)
    monkeypatch.setattr(RunFolder, "log", log_and_signal)
    with pytest.raises(SystemExit) as caught:
        halter.train(made, say=lambda _: None)
    assert caught.value.code == 143 and len(calls) == 1
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["best-0000004", "step-0000003"]
    RunFolder(tmp_path / "run").load_checkpoint(checkpoints / "step-0000003")
    assert RunFolder(tmp_path / "run").load_best(4)


def test_outside_the_main_thread_signals_are_left_alone():
    done = []

    def work():
        with Stops(print) as stops, stops.whole():
            done.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [signal.getsignal(signal.SIGTERM)]
