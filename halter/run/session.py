"""From a recipe to a finished run: the order in which things happen, and nothing of what each of them does."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from halter import recipe as recipes
from halter.adapters import warm
from halter.adapters.adapter import Adapter, adapt, trained_matrices
from halter.adapters.loading import load_adapter
from halter.arguments import checked
from halter.errors import HalterError
from halter.files.runs import THREADS, RunFolder
from halter.files.unwritten import Unwritten
from halter.model.decoder import Decoder
from halter.numerics import allocation, denormals, threads
from halter.pretrained.digest import digest_in_background
from halter.recipe import Recipe
from halter.run import same_data
from halter.run.cautions import to_lower
from halter.run.checkpoints import Checkpointer
from halter.run.course import Course
from halter.run.describe import describe
from halter.run.ends import last_words, refuse_nothing_learnt, result, unmoved_words
from halter.run.expert_choice import untrained_experts, with_experts_found
from halter.run.held import load_base
from halter.run.output import claimed, open_run
from halter.run.planned import planned_and_measured
from halter.run.preflight import ready
from halter.run.prepare import Job
from halter.run.signals import Stopped, Stops
from halter.run.watch import Log, Watch
from halter.telling import Say, tell
from halter.training import memory, optimizers, schedule
from halter.training.callbacks import Callback, Callbacks, Ended, StopTraining
from halter.training.frozen import keep_frozen
from halter.training.guards import Guards
from halter.training.objective import make as make_objective
from halter.training.progress import Display
from halter.training.trackers import open_trackers
from halter.training.trainee import Trainee
from halter.training.unmoved import Outset

MANY = 0.25
"""Share of the base's numbers from which on training so many beside it is worth a word."""


@checked('halter.train({"model": "DIR", "data": "my.jsonl", "method": "lora"}, ["train.max_steps=100"])')
@allocation.kept()
@denormals.flushed()
def train(
    source: str | Path | Mapping[str, Any] | Recipe | None = None,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    dry_run: bool = False,
    callbacks: Sequence[Callback] = (),
    say: Say = tell,
) -> Path | None:
    """Train what the recipe says; returns the run folder, whose ``adapter/`` is the result (None on a dry run).

    ``source`` is a YAML file, a mapping or a Recipe. ``callbacks`` hear what happens (halter.Callback) and end it
    by raising StopTraining; the run folder then holds a checkpoint and no result. ``say`` takes what people are told,
    instead of standard error. Refusals come before the base is loaded; a failure in training
    leaves its traceback in the run folder's log and raises HalterError.
    """
    listeners = Callbacks(callbacks)
    job = ready(source, overrides, resume=resume, say=say)
    recipe = job.recipe
    run = open_run(recipe, resume, job.steps)
    if dry_run:
        say(f"run folder: {run.path}")
        describe(job, say)
        say("time: told when training begins, from its first pass, and again after its first steps")
        say(recipes.dump(recipe))
        return None
    with claimed(run, recipe, resume, say, job.steps) as run, threads.taken(_threads(job, run, resume)) as chosen:
        say(f"run folder: {run.path}")
        describe(job, say)
        if chosen.remarkable():
            say(chosen.words())
        run.put(THREADS, chosen.facts())
        _whole(job, run, resume, say, listeners)
    return run.path


def _threads(job: Job, run: RunFolder, resume: bool) -> threads.Threads:
    """The run's threads; a resumed run of before they were recorded had one for each core."""
    options = job.recipe.train
    recorded = run.threads() if resume else None
    return threads.choose(options.threads, recorded, look=not (options.deterministic or (resume and run.begun)))


def _whole(job: Job, run: RunFolder, resume: bool, say: Say, callbacks: Callbacks) -> None:
    """What the run folder says of the run, and the run."""
    recipe = job.recipe
    run.sweep()
    # What an earlier try left stands for nothing: no checkpoint came of it, or only keys that may change have changed.
    written = run.put_recipe(recipes.dump(recipes.with_output(recipe, str(run.path))))
    if run.users_recipe is not None:
        say(f"note: {run.users_recipe} is yours and stays as it is; what this run trains by is in {written}")
    run.put(same_data.FILE, same_data.record(run, job))
    if job.waived:
        run.put("waived.json", list(job.waived))
    try:
        _train(job, run, resume, say, callbacks)
    except Unwritten as error:
        raise error.then(f"halter train --resume --output {run.path}") from error
    except (HalterError, KeyboardInterrupt):
        raise
    except Exception as error:
        log = run.put("error.log", traceback.format_exc())
        error.add_note(f"The traceback is in {log}.")
        raise


def _train(job: Job, run: RunFolder, resume: bool, say: Say, callbacks: Callbacks) -> None:
    options, began = job.recipe.train, time.monotonic()
    if options.deterministic:
        torch.use_deterministic_algorithms(True)
    identity = digest_in_background(job.folder)  # hashing 16 GB must not delay the first step
    memory.load_libraries(job.recipe.model.quantize, job.recipe.model.device)
    before = memory.peak_memory_bytes()
    model = load_base(job, say)
    job, trainee = _begin(job, model, run, say)
    adapter = trainee.adapter
    attempt = run.attempt()
    trackers = open_trackers(options.report_to, run.path, recipes.as_data(job.recipe))
    with Display(job.steps, options.logging_steps, say) as display, Stops(display.say) as stops:

        def log(record: dict[str, Any]) -> None:
            record = {**record, "attempt": attempt}
            run.log(record)
            for track in trackers:
                track(record)
            if "loss" in record and "alarm" not in record:
                display.step(record)

        watch = Watch(job, model, adapter, run, log, display.say)
        checkpointer = Checkpointer(run, trainee, watch, display.say, model.identity)
        if resume:
            checkpointer.resume(say)
            display.begin(trainee.step)
            checkpointer.carry_on(job.steps, say)
        try:
            course = Course(
                job, model, trainee, watch, checkpointer, stops, log, display.say, callbacks, display.foretell
            )
            terms = course.run()
        except StopTraining:
            checkpointer.stop()
            return
        except Stopped as stop:
            with suppress(Stopped), stops.last():  # a second signal does not wait for the checkpoint
                checkpointer.stop()
            raise stop.as_exit() from None
        except Exception:
            if callbacks.failed:  # between steps, where everything is whole
                checkpointer.stop()
            raise
    refuse_nothing_learnt(trainee)
    _tell_of(trainee, to_lower(job), say, log)
    watch.keep_best(lambda: new_adapter(job, model))
    try:
        found = identity.result()
        adapter.facts["base"] |= found.facts()
    except Exception as error:  # a result is worth more than its base's digest
        say(f"the base's digest could not be made and is left out: {error}")
    adapter.facts["run"] = {"steps": trainee.step, "planned": job.steps}
    run.put_result_aside(run.planned_steps())
    adapter.save(run.adapter)
    say(planned_and_measured(job, model, terms, before))
    say(f"saved: {run.adapter}{result(trainee, time.monotonic() - began)}")
    say(f"next: halter chat {run.path}; halter evaluate {run.path} --data TEST; halter merge {run.path} --output DIR")
    callbacks.tell("on_end", lambda: Ended(trainee.step, run.adapter))


def _tell_of(trainee: Trainee, to_lower: str, say: Say, log: Log) -> None:
    """What the steps did not do as they should: for people, and places at which nothing moved in metrics.jsonl."""
    still = trainee.unmoved()
    for line in (*last_words(trainee, to_lower), *unmoved_words(trainee, still), *untrained_experts(trainee)):
        say(line)
    if still:
        log({"step": trainee.step, "unmoved": [slot.path for slot in still]})


def _begin(job: Job, model: Decoder, run: RunFolder, say: Say) -> tuple[Job, Trainee]:
    """The untrained adapter with all that trains it, and a word on its size; the job with what the data had to say."""
    job = with_experts_found(job, model, say, run)
    options = job.recipe.train
    adapter = new_adapter(job, model, say)
    share = adapter.num_trainable / job.config.num_parameters
    say(f"trainable: {adapter.num_trainable:,} ({share:.4%} of the base's {job.config.num_parameters:,})")
    if share > MANY and not trained_matrices(adapter):
        say("warning: that is a large part of so small a base; a smaller method.r trains less")
    trainee = new_trainee(job, adapter, say)
    tokens, epochs = int(job.data.train.lengths.sum()), job.steps / len(job.plan(0))
    keep = "off" if options.neftune_noise_alpha else options.cache_frozen  # noise changes what layers give every time
    trainee.outset = Outset(adapter)
    trainee.frozen = keep_frozen(keep, model, adapter, tokens, epochs, say)
    return job, trainee


def new_adapter(job: Job, model: Decoder, say: Say = lambda _: None) -> Adapter:
    """The job's untrained adapter on the model, with what its folder will say of the run."""
    adapter = adapt(model, [choice.options for choice in job.recipe.methods], seed=job.recipe.train.seed)
    folders = {part: choice.init_from for part, choice in enumerate(job.recipe.methods) if choice.init_from is not None}
    read = {folder: load_adapter(folder, model, job.recipe.checks.allow, say) for folder in set(folders.values())}
    for line in warm.begin(adapter, {part: (folder, read[folder]) for part, folder in folders.items()}, model):
        say(line)
    options = job.recipe.model
    adapter.facts = {
        "base": {"name": options.path, "folder": str(job.folder.resolve()), "revision": options.revision},
        "quantize": options.quantize,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "tokenizer": {"digest": job.tokenizer.digest},
        "template": None if job.template is None else {"name": job.template.name, "digest": job.template.digest},
        "template_source": None if job.template is None else job.template.source,
        "template_date": job.recipe.data.template_date,
        "recipe": recipes.as_data(job.recipe),
        "waived": list(job.waived),
    }
    return adapter


def new_trainee(job: Job, adapter: Adapter, say: Say) -> Trainee:
    """The adapter with optimizer, schedule and guards as the job's recipe says."""
    options = job.recipe.train
    rate = float(options.learning_rate or 0.0)
    optimizer = optimizers.make(
        options.optimizer,
        adapter.groups(rate, options.weight_decay),
        rate,
        (options.adam_beta1, options.adam_beta2),
        options.adam_epsilon,
        say,
    )
    warmup = schedule.warmup_steps(options.warmup_steps or 0.0, job.steps)
    device = next(adapter.parameters()).device.type
    half = adapter.facts["dtype"] == "float16"  # whoever asked for it: the recipe, the checkpoint, or an old GPU
    scaler = torch.amp.GradScaler(device, enabled=half)
    share = schedule.make(options.lr_scheduler_type, job.steps, warmup)
    guards = Guards(options.on_nonfinite, options.on_spike)
    return Trainee(
        adapter,
        optimizer,
        share,
        scaler,
        options.max_grad_norm,
        options.seed,
        guards=guards,
        smoothing=options.label_smoothing_factor,
        noise=options.neftune_noise_alpha,
        objective=make_objective(options.objective),
    )
