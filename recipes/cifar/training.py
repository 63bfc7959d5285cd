"""The training loop of both networks: one process or many, stoppable and resumable after any step.

Everything random is a function of (seed, stage, epoch or step, process), so that a checkpoint needs no generator states: the
weights, the optimiser and the number of steps taken are the whole state.
"""

import math
import time
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from cifar.checkpoint import CheckpointError, require_one_folder
from cifar.data import Epoch
from cifar.evaluation import accuracy, parts
from cifar.graph import Replayed, capture
from cifar.guard import Guard, broken_weights
from cifar.optimizer import STATES, make_optimizer, rate, set_rate
from cifar.output import OutputError, complain, say
from cifar.seeds import seed_of
from cifar.stage import Progress, Runtime, Stage, phase_of, require_progress
from cifar.termination import TERMINATED
from onespike.optim import centralize_gradients
from onespike.spikingjelly import project_net

LOOK_EVERY = 50
"""Steps between looks at the loss and at other processes' signals on a GPU, where looking makes it wait."""


CHECKED_IMAGES = 1000
"""Validation images by which a network is judged before it is saved in the middle of an epoch."""


class Trainer:
    """Train `network`, which lies on the device of the run, in place, from its latest checkpoint if there is one.

    Raises:
        TrainingError: loss or weights are not finite; the message names the last good checkpoint.
        DeadTrainingError: the network can learn no more; it is not saved, and the message names the last good checkpoint.
        CheckpointError: a checkpoint cannot be read or written.
    """

    def __init__(self, stage: Stage, network: nn.Module, runtime: Runtime) -> None:
        self.stage, self.network, self.runtime = stage, network, runtime
        self.fabric, self.data = runtime.fabric, runtime.data
        self.steps_per_epoch = -(-len(self.data.train) // stage.settings.batch_size)
        planned, limit = stage.settings.epochs * self.steps_per_epoch, stage.settings.max_steps
        self.total = planned if limit is None else min(planned, limit)
        optimizer = make_optimizer(network, stage.settings)
        self.progress = Progress()
        self.saved_step = -1
        saved = stage.checkpoints.load(self.fabric.device)
        if saved is None and self.fabric.is_global_zero:
            weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
            stage.checkpoints.require_space((1 + STATES[stage.settings.optimizer]) * weights)
        if saved is not None:
            self.restore(saved, optimizer)
            self.saved_step = self.progress.step
            self.total = self.progress.step if self.progress.cut else self.total
        self.guard = Guard(stage, network, self.data, self.progress)
        require_one_folder(self.fabric, f"the step of {stage.name}", self.saved_step)
        sums = [self.progress.loss, self.progress.hits] if self.fabric.is_global_zero else [0, 0]
        self.loss, self.hits = torch.tensor(sums, device=self.fabric.device, dtype=torch.float64)
        self.model, self.optimizer = self.fabric.setup(torch.compile(network) if runtime.config.compile else network, optimizer)
        self.replayed: Replayed | None = None
        self.trained_timesteps: int | None = None
        self.phase = (0, stage.settings.epochs)
        self.started = time.monotonic() - self.progress.seconds
        self.saved_at = -math.inf if saved is None else time.monotonic()

    def restore(self, saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> None:
        """Go back to what a checkpoint holds."""
        checkpoints = self.stage.checkpoints
        try:
            self.network.load_state_dict(saved["network"])
            optimizer.load_state_dict(saved["optimizer"])
            self.progress = Progress(**saved["progress"])
            require_progress(self.progress)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            what = " ".join(str(error).split())[:300]
            raise checkpoints.unusable(f"is not of this network ({type(error).__name__}: {what})") from error
        if broken := broken_weights(self.network):
            raise checkpoints.unusable(f"holds NaN or infinite weights, {', '.join(broken)}")

    def fit(self) -> Progress:
        """Take the steps that are left; return the progress, complete."""
        stage, progress, settings = self.stage, self.progress, self.stage.settings
        stage.log(progress.history)
        shown = self.fabric.is_global_zero and progress.step < self.total
        bar = tqdm(
            total=self.total, initial=progress.step, desc=stage.name.upper(), unit="step", disable=None if shown else True
        )
        order: Epoch | None = None
        self.network.train()
        with bar, self.runtime.termination.deferred(), self.guard.failing_numbers():
            self.save_if_due()
            while progress.step < self.total:
                epoch, position = divmod(progress.step, self.steps_per_epoch)
                if order is None or position == 0:
                    order = self.draw(epoch)
                    self.set_timesteps(epoch)
                first = position * settings.batch_size
                self.advance(order.take(slice(first, first + settings.batch_size)))
                bar.update()
                self.cut_if_late()
                if position == self.steps_per_epoch - 1 or progress.step == self.total:
                    self.close_epoch(epoch, min(first + settings.batch_size, len(self.data.train)))
                    bar.set_postfix(shortened(progress.history[-1]))
                    if shown and bar.disable:  # no terminal
                        self.say(self.line())
                self.save_if_due()
        self.replayed = None  # the recording has memory of its own
        return progress

    def say(self, text: str) -> None:
        """Print a line; where nobody takes it, the run is saved and ends at the next look."""
        try:
            say(text)
        except OutputError as error:
            self.runtime.termination.lose(error)

    def line(self) -> str:
        """Say how the latest epoch went, for logs."""
        progress = self.progress
        entry = progress.history[-1]
        numbers = ", ".join(f"{name} {value}" for name, value in shortened(entry).items())
        left = (time.monotonic() - self.started) / progress.step * (self.total - progress.step)
        return f"{self.stage.name.upper()} epoch {entry['epoch']}: {numbers}; {timedelta(seconds=round(left))} left"

    def draw(self, epoch: int) -> Epoch:
        """Draw an epoch's batches and their augmentation."""
        config = self.runtime.config
        generator = torch.Generator().manual_seed(seed_of(config.seed, self.stage.name, "epoch", epoch))
        return Epoch.draw(len(self.data.train), generator, crop=config.crop, flip=config.flip).to(self.fabric.device)

    def set_timesteps(self, epoch: int) -> None:
        """Make the network ready for an epoch; a recorded step is recorded anew when the time steps change."""
        T = self.stage.timesteps and self.stage.timesteps(epoch)
        if T is not None:
            self.network.T = T
        self.phase = phase_of(epoch, self.stage.settings.epochs, self.stage.timesteps)
        if 0 < self.phase[0] * self.steps_per_epoch == self.progress.step:
            self.optimizer.optimizer.state.clear()
        if self.runtime.recorded and (self.replayed is None or T not in (None, self.trained_timesteps)):
            self.replayed = None  # the recording has memory of its own
            self.replayed = Replayed(self.step, self.stage.settings.batch_size, partial(capture, self.optimizer.optimizer))
        self.trained_timesteps = T

    def advance(self, batch: Epoch) -> None:
        """Take the next optimiser step."""
        stage, step = self.stage, self.progress.step
        torch.manual_seed(seed_of(self.runtime.config.seed, stage.name, "step", step, self.fabric.global_rank))
        set_rate(self.optimizer, self.rate_at(step), self.fabric.device)
        (self.replayed or self.step)(batch)
        self.progress.step += 1
        if self.looks():
            self.guard.require_finite_loss(self.loss)

    def step(self, batch: Epoch) -> None:
        """Take one optimiser step with this process's share of a batch, on the device and in place, as `graph` asks for."""
        stage, settings, fabric = self.stage, self.stage.settings, self.fabric
        own = batch.take(slice(fabric.global_rank, None, fabric.world_size))
        size = max(1, -(-len(own.index) // settings.accumulate))
        for part in range(settings.accumulate):
            x, y = self.data.train.augmented(own.take(slice(part * size, (part + 1) * size)))
            with fabric.no_backward_sync(self.model, enabled=part < settings.accumulate - 1):
                output = self.model(x)
                # A share can be empty, and the mean over it is not defined; DDP wants a gradient for every parameter.
                loss = stage.loss(output, y, x) if len(y) else sum(tensor.sum() for tensor in parts(output)) * 0
                # Gradients are averaged over the processes, whatever their shares.
                fabric.backward(loss * (len(y) * fabric.world_size / len(batch.index)))
            self.loss += loss.detach() * len(y)
            self.hits += (parts(output)[0].detach().argmax(1) == y).sum()
        if settings.centralize:
            centralize_gradients(self.network)
        if settings.clip:
            # NaN is looked for with the loss, without making a GPU wait.
            fabric.clip_gradients(self.model, self.optimizer, max_norm=settings.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        project_net(self.network)

    def rate_at(self, step: int) -> float:
        """Return the learning rate of a step of the running phase."""
        settings, steps = self.stage.settings, self.steps_per_epoch
        first, last = self.phase
        factor = 1.0 if self.trained_timesteps is None else self.stage.lr_factor(self.trained_timesteps)
        return factor * settings.lr * rate(settings, step - first * steps, steps, (last - first) * steps)

    def looks(self) -> bool:
        """Whether it is time to look at numbers on the device and at other processes, which makes them wait."""
        step = self.progress.step
        return self.fabric.device.type == "cpu" or step % LOOK_EVERY == 0 or step == self.total

    def close_epoch(self, epoch: int, seen: int) -> None:
        """Add an epoch, over `seen` images, to the history."""
        stage, fabric = self.stage, self.fabric
        self.guard.require_finite_loss(self.loss)
        if stage.timesteps is not None:
            self.network.T = self.runtime.config.T
        entry = {
            "stage": stage.name,
            "epoch": epoch + 1,
            "lr": self.rate_at(self.progress.step - 1),
            "loss": fabric.all_reduce(self.loss, reduce_op="sum").item() / seen,
            "training_accuracy": 100 * fabric.all_reduce(self.hits, reduce_op="sum").item() / seen,
            "validation_accuracy": accuracy(self.network, self.data.validation, fabric),
            **stage.describe(self.network),
            "seconds": time.monotonic() - self.started,
        }
        self.loss.zero_()
        self.hits.zero_()
        self.progress.history.append(entry)
        try:
            stage.log(self.progress.history)
        except OSError as error:
            lost = f"{error.filename} cannot be written: {error.strerror}"
            raise CheckpointError(f"{lost}; {stage.checkpoints.last()}") from error
        self.guard.require_alive(entry["validation_accuracy"], len(self.data.validation))
        self.network.train()

    def cut_if_late(self) -> None:
        """Make this step the last one if the stage's time is up."""
        until = self.runtime.until.get(self.stage.name)
        if until is None or not self.looks() or self.progress.step == self.total:
            return
        late = torch.tensor(float(time.monotonic() > until), device=self.fabric.device)
        if self.fabric.all_reduce(late, reduce_op="sum") > 0:
            self.total, self.progress.cut = self.progress.step, True

    def save_if_due(self) -> None:
        """Save a checkpoint when it is time to; end the process if a signal asked for it."""
        if not self.looks():
            return
        fabric, progress = self.fabric, self.progress
        due = progress.step == self.total or time.monotonic() - self.saved_at > self.runtime.save_every
        termination = self.runtime.termination
        stopping = termination.status > 0
        if fabric.world_size > 1:  # all processes have to do the same after the same step
            asked = torch.tensor([due, stopping], dtype=torch.float32, device=fabric.device)
            due, stopping = (fabric.all_reduce(asked, reduce_op="sum") > 0).tolist()
        if due or stopping:
            self.save()
        if stopping:
            termination.ask(TERMINATED, "a signal to another process")
            if fabric.is_global_zero:
                stopped = f"stopped by {termination.reason} after step {progress.step} of {self.stage.name}"
                (complain if termination.output_lost else self.say)(f"{stopped}: {termination.hint}")
            raise SystemExit(termination.status)

    def save(self) -> None:
        """Save a checkpoint, unless this step's is there already."""
        progress = self.progress
        self.saved_at = time.monotonic()
        if self.saved_step == progress.step:
            return
        self.guard.require_finite_loss(self.loss)
        if progress.step % self.steps_per_epoch and progress.step != self.total:  # the end of an epoch was looked at
            images, T = self.data.validation.head(CHECKED_IMAGES), self.trained_timesteps
            if T is not None:
                self.network.T = self.runtime.config.T
            self.guard.require_alive(accuracy(self.network, images, self.fabric), len(images), between=True)
            self.network.train()
            if T is not None:
                self.network.T = T
        self.guard.require_finite_weights()
        progress.seconds = time.monotonic() - self.started
        progress.loss, progress.hits = self.fabric.all_reduce(torch.stack([self.loss, self.hits]), reduce_op="sum").tolist()
        if self.fabric.is_global_zero:
            state = {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "progress": asdict(progress),
            }
            self.stage.checkpoints.save(progress.step, state)
        self.saved_step = progress.step


def shortened(entry: dict[str, Any]) -> dict[str, str]:
    """Return what the progress bar shows of an epoch."""
    return {name: f"{entry[name]:.3g}" for name in ("loss", "validation_accuracy", "spikes") if name in entry}
