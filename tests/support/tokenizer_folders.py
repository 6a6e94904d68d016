"""Model folders with their own tokenizers, and transformers' tokenizers for comparison."""

import json

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from obscura_jax.config import GPTConfig
from obscura_jax.interop.checkpoint import save_hf
from obscura_jax.text import sample_text
from obscura_jax.text.tokenizers import END_OF_TEXT, gpt2_merges, gpt2_vocabulary
from obscura_jax.training.initial import gpt2_init
from tests.support.models import transformers

TEXTS = (
    "Hello, I am",
    " leading and trailing ",
    f"one {END_OF_TEXT} two{END_OF_TEXT}",
    "naïve → 世界 👩‍👩‍👧",
    "x  y\n\n  z\t1234's",
    "CAFÉ e\u0301 [PAD] x",
)


def bpe(size, special=(END_OF_TEXT,), prefix=False):
    """Return a byte-level BPE trained on the sample text; its first ids are special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([sample_text()], trainer)
    return tokenizer


def gpt2_files(count):
    """Return the vocabulary and merges of GPT-2's first `count - 1` tokens and `<|endoftext|>`."""
    vocabulary = {token: n for token, n in gpt2_vocabulary().items() if n < count - 1}
    merges = [tuple(line.split(" ")) for line in gpt2_merges()[: count - 257]]
    return vocabulary | {END_OF_TEXT: count - 1}, merges


def gpt2_definition(count):
    """Return the `tokenizer.json` of GPT-2's first tokens, as the package tokenizers writes it."""
    vocabulary, merges = gpt2_files(count)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_OF_TEXT])
    return json.loads(tokenizer.to_str())


def config(size, context=32):
    return GPTConfig(size, context, 12, 3, 1, 0.1, True, tie_weights=True)


def weights(size, context=32, seed=0):
    import jax

    params = gpt2_init(config(size, context), jax.random.key(seed))
    return jax.tree.map(lambda leaf: leaf * 5, params)


def hf_folder(path, size, context=32, **entries):
    """Write a Hugging Face folder whose config has these entries; those of None are left out."""
    save_hf(path, config(size, context), weights(size, context))
    change_config(path, obscura_jax=None, **entries)
    return path


def change_config(path, **entries):
    kept = json.loads((path / "config.json").read_text()) | entries
    kept = {name: value for name, value in kept.items() if value is not None}
    (path / "config.json").write_text(json.dumps(kept))


def auto_tokenizer(path):
    """Return the tokenizer that transformers finds in a folder."""
    return transformers().AutoTokenizer.from_pretrained(path, local_files_only=True)


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
