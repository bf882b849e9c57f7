"""Train an embedding model of this package as any other of sentence-transformers, with LoRA on attention and experts.

Titles of the bundled corpus learn to find their documents; a fifth of them is held out. Both kinds are measured before and
after: the model learns the 256 titles it is trained on, too few to help with others. Takes under a minute on a CPU:
`python examples/finetune_embedding.py` (extra `train`).
"""

import tempfile

import peft
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.evaluation import InformationRetrievalEvaluator
from sentence_transformers.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

import ssmoe_embed
from ssmoe_embed.data import search_corpus

torch.set_num_threads(1)  # matrices this small are slower on more
documents = [document for document in search_corpus() if document.title][:320]
held_out = documents[::5]
trained = [document for number, document in enumerate(documents) if number % 5]

model: SentenceTransformer = ssmoe_embed.load(calibration="none", max_seq_length=32)
module = model[0]
torch.manual_seed(0)  # the adapter begins with random numbers
lora = peft.LoraConfig(
    r=8,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
)
module.model = peft.get_peft_model(module.model, lora)

evaluators = {
    name: InformationRetrievalEvaluator(
        queries={document.id: document.title for document in asked},
        corpus={document.id: document.text for document in documents},
        relevant_docs={document.id: {document.id} for document in asked},
        mrr_at_k=[10],
        name=name,
    )
    for name, asked in (("trained", trained), ("held-out", held_out))
}


def measured() -> list[float]:
    """Mean reciprocal rank of the titles trained on, and of those held out."""
    return [evaluator(model)[f"{name}_cosine_mrr@10"] for name, evaluator in evaluators.items()]


before = measured()

with tempfile.TemporaryDirectory() as folder:
    arguments = SentenceTransformerTrainingArguments(
        output_dir=folder,
        num_train_epochs=2,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        warmup_steps=0.1,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    pairs = Dataset.from_dict(
        {"anchor": [document.title for document in trained], "positive": [document.text for document in trained]}
    )
    loss = MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), matryoshka_dims=[256, 64])
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss).train()
    after = measured()

    model.save_pretrained(f"{folder}/tuned")  # the adapter and a reference to the base model
    again = SentenceTransformer(f"{folder}/tuned")
    text = [documents[0].text]
    same = bool(abs(again.encode(text) - model.encode(text)).max() < 1e-5)

for name, one, other in zip(evaluators, before, after, strict=True):
    print(f"MRR@10 of {name} titles: {one:.3f} before, {other:.3f} after")
print(f"saved and loaded again the same: {same}")
