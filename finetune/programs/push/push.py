"""`finetune push`: uploads a trained model to the Hub, with a card that shows its evidence.

`evidence` gathers the facts, `card` writes them down, `staging` makes the folder, `upload`
sends it.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from finetune.errors import UserError
from finetune.programs.push.card import write_card
from finetune.programs.push.evidence import Evidence, gather, look
from finetune.programs.push.staging import (
    check_dry_run,
    check_nothing_secret,
    files_of,
    put_in_place,
    scratch_beside,
    stage,
)
from finetune.publish.markdown import percent
from finetune.recipe import load_recipe


@dataclass(frozen=True)
class Pushed:
    """The result of a push, or of a dry run.

    Attributes:
        repo: OWNER/NAME.
        kind: model or space.
        private: whether only its owner sees it; an older repository keeps its visibility.
        files: names in the repository -> bytes.
        url: the repository's; None: nothing was sent.
        commit: the new commit, or None.
        folder: the folder of a dry run; None: it was pushed.
        images: the number of validation images in the card; 0: it shows the training's panel, if
            any.
        space: the demo, if there is one.
    """

    repo: str
    kind: str
    private: bool
    files: dict[str, int]
    url: str | None = None
    commit: str | None = None
    folder: str | None = None
    images: int = 0
    space: "Pushed | None" = None

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(asdict(self))


def push(
    run: Path,
    repo: str,
    *,
    private: bool = True,
    onnx: Callable[[Path], object] | None = None,
    space: bool = False,
    with_code: bool = False,
    dry_run: Path | None = None,
    message: str | None = None,
    overrides: Sequence[str] = (),
    pictures: bool = True,
) -> Pushed:
    """Pushes a run's best model, or a model folder, with a card that shows its evidence.

    The folder itself is only read: a folder beside it holds the files to send.

    Args:
        run: a run folder (its `best` is taken) or a stock SegFormer folder.
        repo: OWNER/NAME on the Hub; it is created if it does not exist.
        private: whether a new repository is private.
        onnx: writes onnx/model.onnx into a model folder, as `finetune export` does; None: no such
            file.
        space: adds a Gradio Space with the demo, REPO-demo.
        with_code: adds the model's own code, for users who choose trust_remote_code.
        dry_run: sends nothing, and writes the folder here, byte for byte; a Space goes to the same
            name with "-space".
        message: the commit's.
        overrides: "data.path=..." and the like name the validation images on this machine, which
            must then be readable. The pushed recipe stays the run's.
        pictures: whether the model is run on validation images for the card, which takes longer
            than everything else.

    Raises:
        UserError: an argument or a file is wrong; nothing was sent, unless the message says so.
    """
    names = {"model": repo} | ({"space": f"{repo}-demo"} if space else {})
    for name in names.values():
        _check_repo(name)
    if dry_run is None:
        from finetune.programs.push.upload import check_ready, upload_folder  # the Hub's client

        check_ready(repo)  # before minutes of looking at images
    evidence = gather(run)
    if overrides and evidence.recipe is None:
        raise UserError(f"{overrides[0]}: {evidence.folder} has no recipe.yaml to override")
    recipe = load_recipe(evidence.folder / "recipe.yaml", overrides) if evidence.recipe else None
    targets = {}
    if dry_run is not None:
        targets = {"model": dry_run, "space": dry_run.with_name(f"{dry_run.name}-space")}
        for kind in names:
            check_dry_run(targets[kind], evidence.folder, kind)
    with scratch_beside(dry_run or evidence.folder, or_elsewhere=dry_run is None) as scratch:
        model = scratch / "model"
        model.mkdir()
        stage(evidence, model, with_code=with_code)
        asked = any(text.startswith("data.") for text in overrides)
        examples = look(evidence, recipe, needed=asked) if pictures and recipe else None
        write_card(
            model,
            evidence,
            examples,
            repo,
            with_code=with_code,
            onnx=onnx is not None,
            space=names.get("space"),
        )
        if onnx is not None:
            onnx(model)
        if space:
            from finetune.programs.push.space import write_space

            write_space(scratch / "space", repo, title=evidence.name)
        check_nothing_secret(scratch)
        messages = {"model": message or _message(evidence), "space": f"Demo of {repo}"}
        done = {}
        for kind, name in names.items():
            sizes = {path: file.stat().st_size for path, file in files_of(scratch / kind).items()}
            one = Pushed(name, kind, private, sizes)
            if targets:
                put_in_place(scratch / kind, targets[kind])
                done[kind] = replace(one, folder=str(targets[kind]))
                continue
            try:
                sent = upload_folder(
                    scratch / kind, name, private=private, message=messages[kind], repo_type=kind
                )
            except UserError as error:
                if kind == "model":
                    raise
                raise UserError(f"{error} The model is pushed: {done['model'].url}") from error
            done[kind] = replace(one, **asdict(sent))
    images = len(examples.rows) if examples else 0
    return replace(done["model"], images=images, space=done.get("space"))


def _check_repo(repo: str) -> None:
    owner, slash, _ = repo.partition("/")
    if not slash:
        raise UserError(f"REPO {repo!r}: name it OWNER/NAME, such as your-name/{owner}")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        reason = str(error).split(":")[0]
        raise UserError(f"REPO {repo!r} is not a valid name on the Hub ({reason})") from error


def _message(evidence: Evidence) -> str:
    results = evidence.results
    if results is None:
        return f"Weights and card of {evidence.name}"
    score = percent(results.scores["mean_iou"])
    return f"{evidence.name}: step {results.step}, mean IoU {score}"


def show(done: Pushed) -> None:
    """Prints the result."""
    for one in filter(None, (done, done.space)):
        size = sum(one.files.values()) / 1e6
        where = f"the {'private' if one.private else 'public'} {one.kind} {one.repo}"
        said = f"Pushed to {where}" if one.url else f"Would push {one.folder} to {where}"
        print(f"{said}: {len(one.files)} files, {size:.1f} MB")
        if one.url:
            print(f"  {one.url}  (commit {one.commit})")
            continue
        sizes = Counter[str]()
        for name, count in one.files.items():  # the package in a Space counts as one
            sizes["finetune/..." if name.startswith("finetune/") else name] += count
        for name, count in sizes.items():
            print(f"  {count:>12,}  {name}")
    shown = "no predictions"
    if "card/examples.png" in done.files:
        own = "the training's own picture, of its last weights"
        shown = f"{done.images} of the validation images" if done.images else own
        shown += ": card/examples.png"
    print(f"The card shows {shown}")
    if done.space and done.private:
        print("To read a private model, the Space needs a secret HF_TOKEN: add it in its settings")
