"""What all tests share: no network, tiny models made once, varied texts."""

import gc
import os

from having import having

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import command
import pytest
import torch
from tiny import FAMILIES, TOP_C, save_model

import ssmoe_embed

torch.set_num_threads(1)  # matrices this small are slower on several threads, and many times so on a busy machine
for device in (torch.cuda, torch.xpu, torch.mtia):
    if not device.is_available():  # torch would keep the wish, with its stack as text, in case such a device comes up
        device.manual_seed_all = lambda seed: None
IMPORTING_MUCH = {"benchmarks", "cli", "docs", "evaluation", "examples", "training"}
"""Folders whose tests import mteb, the harness or TRL."""


def pytest_collection_modifyitems(items):
    """They come first: one of two processes begins there and the other in the middle, so that one imports all that."""
    items.sort(key=lambda item: IMPORTING_MUCH.isdisjoint(item.path.parts))


def pytest_collection_finish():
    """What was imported stays, so those who collect garbage again and again, as trainers do, need not go through it."""
    gc.freeze()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """Given a family, the folder of its tiny language model."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = save_model(tmp_path_factory.mktemp("models") / family, family)
        return made[family]

    return folder


@pytest.fixture(scope="session", autouse=True)
def own_environment(tmp_path_factory):
    """Tests do not see how their terminal is set up, and neither read nor fill the cache of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "FORCE_COLOR",
            "NO_COLOR",
            "PY_COLORS",
            "TTY_COMPATIBLE",
            "GITHUB_ACTIONS",
            "LINES",
            "SSMOE_DEBUG",
        ):
            patch.delenv(name, raising=False)
        patch.setenv("COLUMNS", "200")
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def ssmoe():
    """Run the command line in this process; returns its exit status, standard output and standard error."""
    return command.ssmoe


@pytest.fixture(scope="session")
def environment(own_environment):
    """The environment of a subprocess."""
    return dict(os.environ)


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture(scope="session")
def olmoe(model_folder):
    return model_folder("olmoe")


@pytest.fixture(scope="session")
def texts():
    """Forty texts of many lengths and kinds, no two alike."""
    short = ["a", "Why?", "42", "hello world", "It rains.", "café au lait", "git reset --soft HEAD~1", "東京は晴れです"]
    sentences = [
        f"{who} {did} {what} {when}."
        for who, what in [("The cook", "a soup"), ("My neighbour", "the old gate"), ("Nobody", "three letters")]
        for did in ("made", "forgot", "never liked")
        for when in ("on Monday", "before the war", "in 1999")
    ]
    longer = [" ".join(sentences[start : start + size]) for start, size in [(0, 3), (4, 5), (10, 8), (2, 15), (1, 26)]]
    return [*short, *sentences, *longer]


@pytest.fixture(scope="session")
def calibrated_module(olmoe, texts):
    """An SSMoE module of the OLMoE model, whose calibrations are fitted for all methods; never change it."""
    module = ssmoe_embed.SSMoE.from_base(olmoe, top_c=TOP_C, calibration="none", progress=False)
    variants = [
        module.settings.changed(method=method, calibration=calibration)
        for method in ("router", "smoe", "moee", "ev", "ssmoe", "ssmoe-hidden")
        for calibration in ("standardize", "whiten")
    ]
    return module.fit_calibration(texts, variants=variants, progress=False)


@pytest.fixture(scope="module")
def evaluated_olmoe(calibrated_module):
    """That model, standardised, as evaluations know it."""
    from ssmoe_embed.evaluation.mteb.models import EvaluatedModel

    having(calibrated_module, calibration="standardize")
    yield EvaluatedModel.of(ssmoe_embed.EmbeddingModel(modules=[calibrated_module], device="cpu"), "test/olmoe")
    having(calibrated_module, calibration="none")


@pytest.fixture(scope="session")
def built(olmoe, texts, tmp_path_factory):
    """The folder of an embedding model, built with a fitted calibration for every method; never change it."""
    output = tmp_path_factory.mktemp("built") / "model"
    return ssmoe_embed.build(olmoe, output, top_c=TOP_C, calibration_texts=texts, license="apache-2.0", progress=False)


@pytest.fixture
def loaded(built):
    """A fresh model from that folder."""
    return ssmoe_embed.load(built, progress=False)


@pytest.fixture(scope="session")
def letters(tmp_path_factory):
    """Given a task's name, what `letters.evaluations` found: two folders of predictions, each with all scores."""
    from letters import evaluations

    done = {}

    def found(name):
        if name not in done:
            done[name] = evaluations(name, tmp_path_factory.mktemp(name))
        return done[name]

    return found
