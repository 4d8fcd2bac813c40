"""Checkpoints: Orbax writes and reads them, we seal them with checksums.

A checkpoint is `checkpoints/<step>/` with the items "params" and "rest" (step, moments, a memory). It is
written in the background under a temporary name; before Orbax renames it into place, we put a manifest
of every file's sha256 inside. So what bears a step's name is whole and sealed; and because Orbax
restores a flipped bit without a word, nothing is read before its files agree with their manifest.
(An object store renames nothing: there `commit_success.txt`, written last, says that a checkpoint is whole,
and the manifest has the checksums that the store itself has computed.)

The restore order:
1. The newest checkpoint whose files agree with its manifest.
2. A damaged one is named, moved to `damaged/<step>` (never deleted), and the one before is tried.
3. All damaged: an error. The run doesn't start again over what it had.
4. None at all: the initial state, from the seed.

Of several processes each writes what its devices hold; the first seals, and what the order above decides is decided
for all: each reads its share of the files to check them.
"""

import json
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import jax
import orbax.checkpoint as ocp

from gpt4jax import files, job, model
from gpt4jax.errors import MishapError, UserError
from gpt4jax.model.parameters import Params
from gpt4jax.parallel import processes

State = TypeVar("State", bound=Any)  # a NamedTuple with `step` and `params`, such as `state.TrainState`
MANIFEST = "manifest.json"
_COMPLETE = "commit_success.txt"
_NOT_SEALED = (MANIFEST, "_CHECKPOINT_METADATA", _COMPLETE)  # Orbax writes these after the seal


class Checkpoints:
    """The checkpoints of a workdir, as a training run writes them."""

    def __init__(self, workdir: files.Path, keep: int):
        self.workdir = workdir
        self.folder = workdir / "checkpoints"
        self.restored = False  # whether the run goes on from a checkpoint
        self._saving = False
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                post_finalization_callback=self._seal, barrier_sync_fn=self._barrier if processes.joined() else None
            ),
        )
        self._manager = ocp.CheckpointManager(files.absolute(self.folder), options=options)

    def latest(self) -> int | None:
        """The newest step that was saved completely."""
        return max(saved_steps(self.workdir), default=None)

    def save(self, state: Any) -> None:
        """Starts to write the state; training may go on. Waits for the previous save, and raises what it met.

        Raises:
            UserError: the previous or this save failed (a full disk, say).
        """
        items = {"params": state.params, "rest": _rest(state)}
        # Orbax copies to the host before it returns, but on a CPU the "copy" may be the buffer itself,
        # which the next step is about to overwrite because the state is donated to it.
        if jax.default_backend() == "cpu":
            items = jax.tree.map(lambda leaf: leaf.copy(), items)
        args = ocp.args.Composite(**{name: ocp.args.StandardSave(item) for name, item in items.items()})
        self._saving = True
        self._in_words(lambda: self._manager.save(int(state.step), args=args, force=True))

    def check(self) -> None:
        """Looks, without waiting, whether the save under way is over.

        Raises:
            UserError: it has failed.
        """
        # Not Orbax's check_for_errors while it saves: that takes the error away from the thread which, seeing
        # none, would go on and remove an older checkpoint.
        if self._saving and not self.saving():
            self.wait()

    def saving(self) -> bool:
        """Whether a save is under way."""
        return self._manager.is_saving_in_progress()

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
            UserError: it failed.
        """
        self._in_words(self._wait)

    def last_saved(self) -> files.Path | None:
        """The newest checkpoint, after waiting for one that is being written."""
        self.wait()
        step = self.latest()
        return None if step is None else self.folder / str(step)

    def _wait(self) -> None:
        self._saving = False
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def _in_words(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # whatever the writer's thread met: OSError, ValueError, RuntimeError
            raise (MishapError if self._passes(error) else UserError)(self._words(error)) from error

    def _passes(self, error: BaseException) -> bool:
        """Whether it may not happen again: a store's mishap, or a process that was lost."""
        return files.in_store(self.folder) or isinstance(error, TimeoutError | jax.errors.JaxRuntimeError)

    def _words(self, error: BaseException) -> str:
        last = self.latest()
        kept = "there is no earlier one" if last is None else f"the one of step {last} is untouched"
        return f"a checkpoint could not be written to {self.folder} ({error}); {kept}"

    def _barrier(self, *, key: str, timeout_ms: int) -> None:
        """Where Orbax's processes wait for each other, one that has failed too: the others would wait 20 minutes."""
        error = sys.exception()  # Orbax's thread waits in a `finally`
        if error is not None and threading.current_thread() is not threading.main_thread():
            processes.leave(job.FAILED if self._passes(error) else 2, lambda: self._words(error))
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)

    def _seal(self) -> None:
        for folder in _unfinished(self.folder):
            names = _sealed(folder)
            digests = files.checksums(folder, names)
            files.replace(folder / MANIFEST, json.dumps(dict(zip(names, digests, strict=True)), indent=1))

    def restore(self, abstract: State, say: Callable[[str], None]) -> State | None:
        """The newest sound state, laid out as `abstract` (shapes with shardings) is; None if nothing was saved.

        All processes must call this.

        Raises:
            UserError: every checkpoint is damaged.
        """
        for step in reversed(processes.of_first(lambda: saved_steps(self.workdir))):
            reasons = processes.of_all(damage(self.folder / str(step), processes.share()))
            reason = next((each for each in reasons if each is not None), None)
            if reason is None:
                like = {"params": abstract.params, "rest": _rest(abstract)}
                args = {name: ocp.args.StandardRestore(item) for name, item in like.items()}
                items = self._manager.restore(step, args=ocp.args.Composite(**args))
                self.restored = True
                return type(abstract)(params=items["params"], **items["rest"])
            aside = processes.of_first(partial(self._set_aside, step))
            self._manager.reload()
            say(f"the checkpoint of step {step} is damaged ({reason}): moved to {aside}")
        if processes.of_first(lambda: files.is_folder(self.workdir / "damaged")):  # now or in an earlier attempt
            raise UserError(
                f"every checkpoint of {self.workdir} is damaged; they are in {self.workdir / 'damaged'}: "
                "remove that folder to start from the first step, and lose them"
            )
        return None

    def _set_aside(self, step: int) -> str:
        target = self.workdir / "damaged" / str(step)
        number = 1
        while files.is_folder(target):
            number += 1
            target = self.workdir / "damaged" / f"{step}-{number}"
        files.move(self.folder / str(step), target)
        return str(target)

    def close(self) -> None:
        """Waits for the last save and ends Orbax's threads."""
        self._in_words(self._manager.close)


def _rest(state: Any) -> dict[str, Any]:
    """All but the parameters; without an entry for a memory where there is none."""
    return {name: value for name, value in state._asdict().items() if name != "params" and value is not None}


def load_params(
    workdir: files.Path, config: model.Config, say: Callable[[str], None], shardings: Any = None
) -> tuple[int, Params]:
    """(step, parameters) of the newest sound checkpoint; changes nothing in the workdir.

    They are laid out as `shardings`, a tree in their structure, says; None: on one device.

    Raises:
        UserError: there is none.
    """
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes, jax.tree.map(lambda _: place, shapes) if shardings is None else shardings,
    )  # fmt: skip
    folder = workdir / "checkpoints"
    for step in reversed(saved_steps(workdir)):
        reason = damage(folder / str(step))
        if reason is None:
            with ocp.StandardCheckpointer() as reader:
                return step, reader.restore(files.absolute(folder / str(step) / "params"), abstract)
        say(f"the checkpoint of step {step} is damaged ({reason}); trying the one before")
    raise UserError(f"{workdir} holds no sound checkpoint")


def damage(folder: files.Path, share: tuple[int, int] = (0, 1)) -> str | None:
    """What is wrong with a checkpoint's files, by its manifest; None if nothing is.

    With `share` (i, n) only every n-th file, from the i-th on, is read; which there are, is always looked at.
    """
    try:
        manifest = json.loads(files.text(folder / MANIFEST) or "")
    except (OSError, ValueError):  # of a disk: a store that can't be asked has damaged nothing
        return "its manifest is missing or unreadable"
    names = _sealed(folder)
    strange = sorted(manifest.keys() ^ set(names))
    if strange:
        return f"{strange[0]} is {'missing' if strange[0] in manifest else 'not in its manifest'}"
    own = names[share[0] :: share[1]]
    for name, digest in zip(own, files.checksums(folder, own), strict=True):
        if manifest[name] != digest:
            return f"{name} does not match its checksum"
    return None


def _sealed(folder: files.Path) -> list[str]:
    """The files that a manifest names, as it names them."""
    return sorted(path.relative_to(folder).as_posix() for path in files.below(folder) if path.name not in _NOT_SEALED)


def _unfinished(folder: files.Path) -> list[files.Path]:
    """The checkpoints of which Orbax has still to say that they are complete: by their names, in a store as below."""
    if files.in_store(folder):
        steps, complete = _in_store(folder)
        return [folder / step for step in sorted(steps - complete)]
    return [path for path in folder.iterdir() if ".orbax-checkpoint-tmp" in path.name]


def saved_steps(workdir: files.Path) -> list[int]:
    """The steps of the complete checkpoints of a workdir, in order.

    Raises:
        UserError: an object store can't be asked.
    """
    folder = workdir / "checkpoints"
    if files.in_store(folder):
        found = _in_store(folder)[1]
    else:
        found = {path.name for path in folder.iterdir() if path.name.isdecimal()} if folder.is_dir() else set()
    return sorted(map(int, found))


def _in_store(folder: files.Path) -> tuple[set[str], set[str]]:
    """All steps, and those that are complete, from one listing: half an answer must not be taken for a whole one."""
    found = {path.relative_to(folder).parts for path in files.below(folder)}
    steps = {parts[0] for parts in found if parts[0].isdecimal()}
    return steps, {step for step in steps if (step, _COMPLETE) in found}
