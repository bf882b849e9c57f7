"""No MoE family of transformers goes unnoticed: each has an adapter or a reason why not."""

import inspect
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import transformers
from layouts import LAYOUTS
from packaging.version import Version
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from ssmoe_embed import UnsupportedModelError
from ssmoe_embed.cli.info import family_page
from ssmoe_embed.families import families, family_of, supported_types
from ssmoe_embed.families.refused import CHECKED_WITH, REFUSED

MODELS = Path(transformers.__file__).parent / "models"
DOCS = Path(__file__).parents[2] / "docs" / "families.md"


def modeling_modules(word):
    """The modules of transformers in whose text a word occurs."""
    for file in sorted(MODELS.glob("*/modeling_*.py")):
        if word in file.read_text(encoding="utf-8"):
            yield import_module(f"transformers.models.{file.parent.name}.{file.stem}")


def reads_text(model_class):
    part = model_class.config_class.model_type.endswith(("_audio", "_vision"))
    return not part and "text" in getattr(model_class, "input_modalities", "text")


@pytest.fixture(scope="module")
def recorded():
    """The classes that record router logits, by their configuration's model_type."""
    found = {}
    for module in modeling_modules("router_logits"):
        for name, kind in vars(module).items():
            if not (inspect.isclass(kind) and issubclass(kind, PreTrainedModel) and kind.__module__ == module.__name__):
                continue
            model_type = getattr(kind.config_class, "model_type", None)
            if model_type and reads_text(kind) and "router_logits" in (kind._can_record_outputs or {}):
                found.setdefault(model_type, []).append(name)
    return found


def report(unknown):
    """Families that nobody has looked at are a fault with the version that was gone through, news with a newer one."""
    if not unknown:
        return
    message = (
        f"transformers {transformers.__version__} has MoE families that this package does not know: {unknown}. Write an "
        "adapter in ssmoe_embed/families/ and a description in tests/support/layouts/, or a reason in "
        "ssmoe_embed/families/refused.py, where CHECKED_WITH is to be moved; then run "
        "`ssmoe families --markdown > docs/families.md`."
    )
    if Version(transformers.__version__) <= Version(CHECKED_WITH):
        pytest.fail(message)
    warnings.warn(message, stacklevel=2)


def test_every_class_that_records_router_logits_is_covered_or_refused_with_a_reason(recorded):
    assert len(recorded) > 60
    report({name: classes for name, classes in recorded.items() if name not in {*supported_types(), *REFUSED}})


def test_every_module_with_experts_records_router_logits_of_a_known_family(recorded):
    known, unknown = {*recorded, *REFUSED}, {}
    for module in modeling_modules("Experts(nn.Module)"):
        kinds = [kind for kind in vars(module).values() if inspect.isclass(kind) and kind.__module__ == module.__name__]
        types = {getattr(kind.config_class, "model_type", None) for kind in kinds if issubclass(kind, PreTrainedModel)}
        if not types & known:
            unknown[module.__name__] = types
    report(unknown)


@pytest.fixture(scope="module")
def borrowers(recorded):
    """What has experts and no class of its own that records router logits, by `model_type`: a default configuration.

    Wrappers, whose text part has experts, and types that are run with another type's class.
    """
    found, router_classes = {}, {name for names in recorded.values() for name in names}
    for model_type in CONFIG_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[model_type]()
            text = config.get_text_config()
        except Exception:
            continue
        own = MODEL_MAPPING_NAMES.get(model_type) in router_classes
        if own or (text is not config and text.model_type in {*supported_types(), *REFUSED}):
            found[model_type] = config
    return found


def test_wrappers_and_types_that_borrow_a_class_are_covered_or_refused_with_their_reason(borrowers):
    assert {"kimi_k25", "sarvam_moe", "sarvam_mla", "nemotron_h_omni", "qwen3_vl_moe"} <= set(borrowers)
    unknown = {}
    for model_type, config in borrowers.items():
        try:
            family_of(config)
        except UnsupportedModelError as refusal:
            if "no adapter yet" in str(refusal) or "names no experts" in str(refusal):
                unknown[model_type] = [str(refusal)[:80]]
    report(unknown)


@pytest.mark.parametrize(
    ("model_type", "text", "reason"),
    [
        ("mistral3", "axk1", "nobody has written and checked one"),
        ("internvl", "qwen2", "model_type='internvl' with a text part of model_type='qwen2'.*names no experts"),
        ("llava", "mistral_large4_text", "reads images"),
    ],
)
def test_a_wrapper_is_refused_for_what_its_text_part_is(model_type, text, reason):
    config = AutoConfig.for_model(model_type, text_config={"model_type": text})
    with pytest.raises(UnsupportedModelError, match=reason):
        family_of(config)


def test_experts_without_an_adapter_are_not_called_dense():
    config = PretrainedConfig()
    config.model_type, config.num_experts = "made_up", 8
    with pytest.raises(UnsupportedModelError, match=r"it has experts, but no adapter yet.*one line there"):
        family_of(config)


def test_news_of_a_newer_version_is_a_warning_and_a_gap_in_the_checked_one_a_failure(monkeypatch):
    monkeypatch.setattr(transformers, "__version__", "99.0")
    with pytest.warns(UserWarning, match="made_up"):
        report({"made_up": ["MadeUpModel"]})
    monkeypatch.setattr(transformers, "__version__", CHECKED_WITH)
    with pytest.raises(pytest.fail.Exception, match="made_up"):
        report({"made_up": ["MadeUpModel"]})


def test_no_family_is_both_covered_and_refused():
    assert not set(supported_types()) & set(REFUSED)


def test_every_adapter_is_tested_by_a_description():
    for family in families():
        assert set(family.model_types) & set(LAYOUTS), (
            f"{family.model_types} has no description in tests/support/layouts/"
        )


@pytest.mark.parametrize("model_type", sorted(REFUSED))
def test_a_refusal_says_why_and_what_to_do(model_type):
    config = PretrainedConfig()
    config.model_type = model_type
    with pytest.raises(UnsupportedModelError) as refusal:
        family_of(config)
    message = str(refusal.value)
    assert REFUSED[model_type] in message
    assert "Choose" in message or "Put a class into" in message
    assert "olmoe" in message


def test_the_table_in_the_documentation_is_up_to_date():
    assert DOCS.read_text(encoding="utf-8") == family_page(), "run `ssmoe families --markdown > docs/families.md`"


def test_the_table_names_every_supported_and_every_refused_model_type():
    for name in (*supported_types(), *REFUSED):
        assert f"`{name}`" in family_page()


def test_the_command_prints_the_table(ssmoe):
    assert ssmoe("families", "--markdown") == (0, family_page(), "")
    table = ssmoe("families")
    assert table.status == 0
    for name in supported_types():
        assert name in table.out
