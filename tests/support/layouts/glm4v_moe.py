from typing import ClassVar

from transformers import AutoConfig, AutoModelForImageTextToText

from layouts.base import SHARED
from layouts.glm4_moe import Glm4Moe

MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
HALF = MROPE | {"partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}


class Glm4vMoe(Glm4Moe):
    """GLM-4.5V: GLM-4's text model beside a vision model."""

    model_type = "glm4v_moe"
    auto = AutoModelForImageTextToText
    prefix = "model.language_model."
    config: ClassVar = Glm4Moe.config | {"rope_parameters": HALF}
    vision: ClassVar = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": SHARED["hidden_size"],
        "image_size": 16,
        "patch_size": 4,
    }

    def make_config(self, **changes):
        text = SHARED | self.config | changes
        return AutoConfig.for_model(self.model_type, text_config=text, vision_config=self.vision)

    def decoder(self, model):
        inner = getattr(model, "model", model)
        return getattr(inner, "language_model", inner)

    def save(self, model, folder):
        model.save_pretrained(folder)
