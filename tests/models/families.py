"""Tiny random models of many architectures, and what plain transformers says about them.

The reference is always the same and owes nothing to the code under test: `AutoModelForCausalLM` on one sequence
without padding, the whole of it, in float32, with neither cache nor mask.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

from kdsuite.config import LoraSettings, task_section
from kdsuite.models.generation import STOP
from kdsuite.models.loading import ModelSource, load_chat, load_model, trainable
from kdsuite.tasks.classification import Classification
from kdsuite.tasks.encoding import ChatTokenizer, Encoded, encode, encode_prompts
from kdsuite.tasks.example import Example, task_of

TASKS = {"sst2": task_of("sst2", task_section("sst2")), "squad": task_of("squad", task_section("squad"))}

CPU = torch.device("cpu")
WINDOW = 48  # tokens that a layer with a sliding window sees; every prompt below is longer
NEW_TOKENS = 6
GAIN = 1.5  # of a layer's matrices: with transformers' own 0.02 all prompts get the same answer
Settings = dict[str, Any]

# --- architectures

PLAIN: Settings = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 1024,
}  # fmt: skip
WIDE: Settings = PLAIN | {"head_dim": 8}
GPT: Settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}
OPT: Settings = {
    "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "word_embed_proj_dim": 32, "max_position_embeddings": 1024,
}  # fmt: skip
FALCON: Settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MAMBA: Settings = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
MIXED: Settings = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR: Settings = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
EXPERTS: Settings = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
STATES: Settings = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16,
}  # fmt: skip
BERT: Settings = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 1026,
}  # fmt: skip

# name: (transformers' model type, what its configuration says); every one of them must work
FAMILIES: dict[str, tuple[str, Settings]] = {
    "llama": ("llama", PLAIN),
    "qwen2": ("qwen2", PLAIN),
    "qwen2_tied": ("qwen2", PLAIN | {"tie_word_embeddings": True}),
    "qwen2_padded": ("qwen2", PLAIN | {"vocab_size": 448}),  # more rows than the tokenizer has tokens
    "qwen3": ("qwen3", WIDE),
    "gemma": ("gemma", WIDE),
    "gemma2": (
        "gemma2",
        WIDE | {"query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 0.5} | MIXED,
    ),
    "gemma3_text": ("gemma3_text", WIDE | {"query_pre_attn_scalar": 8} | MIXED),
    "gemma3n_text": (
        "gemma3n_text",
        WIDE
        | {"hidden_size_per_layer_input": 8, "laurel_rank": 4, "num_kv_shared_layers": 0}
        | {"altup_num_inputs": 2, "activation_sparsity_pattern": [0.5, 0.0], "final_logit_softcapping": 2.0}
        | MIXED,
    ),
    "mistral": ("mistral", PLAIN | {"sliding_window": WINDOW}),
    "ministral": ("ministral", WIDE | MIXED),
    "phi": ("phi", PLAIN),
    "phi3": ("phi3", PLAIN),
    "phi3_window": ("phi3", PLAIN | {"sliding_window": WINDOW}),
    "gpt2": ("gpt2", GPT),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_neo": (
        "gpt_neo",
        {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 1024}
        | {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    ),
    "gpt_neox": ("gpt_neox", PLAIN),
    "gptj": ("gptj", GPT | {"rotary_dim": 4}),
    "codegen": ("codegen", GPT | {"rotary_dim": 4}),
    "opt": ("opt", OPT),
    "opt_projected": ("opt", OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "falcon": ("falcon", FALCON | {"alibi": False}),
    "falcon_alibi": ("falcon", FALCON | {"alibi": True, "parallel_attn": False, "bias": True}),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 1024}),
    "olmo": ("olmo", PLAIN | {"clip_qkv": 0.5}),
    "olmo2": ("olmo2", PLAIN),
    "olmo3": ("olmo3", PLAIN | MIXED),
    "stablelm": ("stablelm", PLAIN),
    "starcoder2": ("starcoder2", PLAIN | {"sliding_window": WINDOW}),
    "granite": (
        "granite",
        PLAIN
        | {"logits_scaling": 0.25, "embedding_multiplier": 3.0}
        | {"residual_multiplier": 0.7, "attention_multiplier": 0.5},
    ),
    "cohere": ("cohere", PLAIN | {"logit_scale": 4.0}),
    "cohere2": ("cohere2", PLAIN | {"logit_scale": 4.0} | MIXED),
    "smollm3": ("smollm3", PLAIN | {"no_rope_layers": [1, 0]}),
    "glm4": ("glm4", WIDE | {"partial_rotary_factor": 0.5}),
    "nemotron": ("nemotron", PLAIN),
    "exaone4": ("exaone4", PLAIN | MIXED),
    "mixtral": ("mixtral", PLAIN | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", PLAIN | EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("qwen3_moe", WIDE | EXPERTS),
    "olmoe": ("olmoe", PLAIN | {"num_experts": 4, "num_experts_per_tok": 2}),
    "gpt_oss": ("gpt_oss", WIDE | {"num_local_experts": 4, "num_experts_per_tok": 2} | MIXED),
    "llama4_text": (
        "llama4_text",
        WIDE
        | {"attention_chunk_size": WINDOW, "num_local_experts": 2, "num_experts_per_tok": 1}
        | {"intermediate_size_mlp": 64, "interleave_moe_layer_step": 2, "no_rope_layers": [1, 0]}
        | {"layer_types": ["chunked_attention", "full_attention"]},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        PLAIN
        | {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4}
        | {"qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4, "n_shared_experts": 1}
        | {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
        | {"moe_intermediate_size": 32},
    ),
    "mamba": ("mamba", MAMBA),
    "mamba2": ("mamba2", MAMBA | {"head_dim": 16, "num_heads": 4, "n_groups": 1, "chunk_size": 16}),
    "falcon_mamba": ("falcon_mamba", MAMBA),
    "recurrent_gemma": (
        "recurrent_gemma",
        PLAIN | {"num_hidden_layers": 3, "attention_window_size": WINDOW, "lru_width": 32, "logits_soft_cap": 2.0},
    ),
    "jamba": (
        "jamba",
        PLAIN
        | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
        | {"num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 8, "use_mamba_kernels": False},
    ),
    "bamba": ("bamba", PLAIN | STATES | {"attn_layer_indices": [1]}),
    "granitemoehybrid": (
        "granitemoehybrid",
        PLAIN
        | STATES
        | {"layer_types": ["mamba", "attention"], "num_local_experts": 2, "num_experts_per_tok": 1}
        | {"shared_intermediate_size": 32, "logits_scaling": 0.25},
    ),
    "zamba2": (
        "zamba2",
        PLAIN
        | {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"], "hybrid_layer_ids": [1]}
        | {"mamba_d_state": 8, "n_mamba_heads": 4, "mamba_ngroups": 1, "mamba_headdim": 16}
        | {"chunk_size": 16, "num_mem_blocks": 1, "use_mem_rope": True, "adapter_rank": 4},
    ),
    "lfm2": ("lfm2", PLAIN | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 16}),
    "falcon_h1": ("falcon_h1", WIDE | STATES | {"mamba_d_head": 8, "mamba_d_ssm": 32, "lm_head_multiplier": 0.5}),
    "qwen3_next": ("qwen3_next", WIDE | EXPERTS | LINEAR | {"shared_expert_intermediate_size": 32}),
    "qwen3_5_text": ("qwen3_5_text", WIDE | LINEAR),
}

# equal plain transformers, or are refused with one line; which of the two is left open
EITHER: dict[str, tuple[str, Settings]] = {
    "rwkv": ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 1024}),
    "openai-gpt": ("openai-gpt", GPT),
    "xglm": ("xglm", {"d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4}),
    "biogpt": ("biogpt", BERT),
    "persimmon": ("persimmon", PLAIN),
    "roberta_decoder": ("roberta", BERT | {"is_decoder": True}),
    "gemma3": (
        "gemma3",
        {
            "text_config": WIDE | {"query_pre_attn_scalar": 8} | MIXED,
            "vision_config": {
                "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                "image_size": 16, "patch_size": 8,
            },
            "mm_tokens_per_image": 4,
        },
    ),
    "llava": (
        "llava",
        {
            "text_config": PLAIN | {"model_type": "llama"},
            "vision_config": {
                "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 16,
                "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8,
            },
        },
    ),
    "qwen2_vl": (
        "qwen2_vl",
        {
            "text_config": PLAIN
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
            "vision_config": {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 1},
        },
    ),
}  # fmt: skip
# of FAMILIES: transformers' hidden states are [layer 1, …, layer n, normed n], not [embeddings, layer 1, …, normed n]
WITHOUT_EMBEDDINGS = ("mamba", "mamba2", "falcon_mamba")
PICTURES = ("gemma3", "llava", "qwen2_vl")  # of EITHER: what reads pictures as well

# name: (model type, configuration, what the line that refuses says)
ENCODER_DECODER = r"encoder.decoder"
NOT_CAUSAL = r"causal|bidirectional|later tokens|look(s|ing)? ahead"
REFUSED: dict[str, tuple[str, Settings, str]] = {
    "t5": ("t5", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}, ENCODER_DECODER),
    "bart": (
        "bart",
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
        | {"decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64},
        ENCODER_DECODER,
    ),
    "roberta": ("roberta", BERT, NOT_CAUSAL),
    "bert": ("bert", BERT, NOT_CAUSAL),
    "electra": ("electra", BERT, NOT_CAUSAL),
}


def build(kind: str, settings: Settings, tokenizer: Any, folder: Path, auto: Any = AutoModelForCausalLM) -> Path:
    """A random model with weights large enough that differences show, saved with its tokenizer.

    Whatever would end an answer but the end of turn is unlikely (other special tokens, stop strings of new
    lines): answers of some length tell more, and those ends are other tests' business.
    """
    torch.manual_seed(0)
    model = auto.from_config(configuration(kind, settings, tokenizer))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                noise = 0.1 if name.endswith("bias") else 0.4  # biases of zero and gains of one would hide faults
                weight.add_(torch.randn(weight.shape) * noise)
            elif name.endswith(("weight", "_proj")):
                fan_in = 1 if "embed" in name or "wte" in name else weight.shape[-1]
                weight.mul_(GAIN / (weight.std() * fan_in**0.5))
        head = model.get_output_embeddings().weight
        head.mul_(0.3 / head.std())
        head[_unlikely(tokenizer)] *= 0.1
        head[len(tokenizer) :] = 0.0  # what the tokenizer cannot spell is never the likeliest
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _unlikely(tokenizer: Any) -> list[int]:
    special = set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
    return [i for i in range(len(tokenizer)) if i in special or "\n" in tokenizer.decode([i])]


def configuration(kind: str, settings: Settings, tokenizer: Any) -> Any:
    """Without dropout, so that training mode is comparable; special tokens are the tokenizer's."""
    end = tokenizer.eos_token_id
    words = {
        "vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if kind == "gemma3n_text":
        words["vocab_size_per_layer_input"] = len(tokenizer)
    if "text_config" in settings:
        return CONFIG_MAPPING[kind](**settings | {"text_config": words | settings["text_config"]})
    config = CONFIG_MAPPING[kind](**words | settings)
    for name, value in config.to_dict().items():
        if ("drop" in name or name == "attn_pdrop") and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


# --- what they are asked


VERDICT = Classification(
    "verdict",
    task_section(
        "verdict",
        kind="classification",
        labels=["bad", "good", "neither good nor bad"],  # of one token and of several
        prompt="Review: {{ sentence }}\nGood, bad or neither?",
        max_length=256,
    ),
)
SENTENCES = (
    ("a film", "good"),
    ("an old film about the sea and the wind that never comes to an end", "bad"),
    ("nothing happens in it", "neither good nor bad"),
    ("the music is loud , the actors are tired and the story is one that has been told often", "bad"),
    ("warm", "good"),
)
LONG = (
    "Ada Lovelace lived in London. London is large and stands on the river Thames. She wrote notes in 1843, "
    "and they were read by few people in her time."
)
SHORT = "Oslo is the capital of Norway."


def questions() -> list[Example]:
    """On a long and on a short passage (shared beginnings), and one on a passage of its own."""
    asked = (
        (LONG, "Where did Ada live?", "London"),
        (SHORT, "What is Oslo?", "the capital of Norway"),
        (LONG, "When did she write notes, and how many people read them in her time?", "1843"),
        (LONG, "Which river?", "Thames"),
        (SHORT, "What is the capital of Norway called?", "Oslo"),
        ("Yes.", "Is it?", "Yes"),
    )
    return [
        Example(f"q{i}", {"context": c, "question": q}, a, (a,), c, c.index(a)) for i, (c, q, a) in enumerate(asked)
    ]


# --- subject and reference


@dataclass
class Subject:
    """One tiny model on disk: as this suite loads it, and as plain transformers does."""

    name: str
    folder: Path
    auto: Any = AutoModelForCausalLM
    in_training: dict[bool, Any] = field(default_factory=dict)
    references: dict[tuple[str, int], tuple[torch.Tensor, list[torch.Tensor]]] = field(default_factory=dict)

    @property
    def source(self) -> ModelSource:
        return ModelSource(self.folder.name, str(self.folder))

    def load(self) -> Any:
        return load_model(self.source, CPU, torch.float32)

    def trained(self, lora: LoraSettings) -> Any:
        """A model of one's own in training mode, with a fresh adapter or all its weights to be trained."""
        if lora.enabled not in self.in_training:
            self.in_training[lora.enabled] = trainable(self.load(), lora).train()
        return self.in_training[lora.enabled]

    @cached_property
    def model(self) -> Any:
        return self.load()

    @cached_property
    def chat(self) -> ChatTokenizer:
        return load_chat(self.source)

    @cached_property
    def plain(self) -> Any:
        return self.auto.from_pretrained(str(self.folder), dtype=torch.float32).eval()

    @cached_property
    def labelled(self) -> list[Encoded]:
        examples = [Example(f"v{i}", {"sentence": s}, label, (label,), s) for i, (s, label) in enumerate(SENTENCES)]
        return encode(VERDICT, self.chat, examples)

    @cached_property
    def answers(self) -> list[Encoded]:
        return encode(task_of("squad", task_section("squad", max_length=320)), self.chat, questions())

    @cached_property
    def prompts(self) -> list[list[int]]:
        settings = task_section("squad", max_length=320, max_new_tokens=NEW_TOKENS)
        return [prompt for [prompt] in encode_prompts(task_of("squad", settings), self.chat, questions())]

    @property
    def vocabulary(self) -> int:
        return 1 + max(self.chat.tokenizer.get_vocab().values())

    def reference(self, example: Encoded, choice: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits [p, vocabulary] and hidden states [p, H] per layer that predict a continuation's tokens."""
        key = example.id, choice
        if key not in self.references:
            with torch.no_grad():
                self.references[key] = self.compute(example, choice)
        return self.references[key]

    def compute(self, example: Encoded, choice: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As `reference`, always anew and with gradients if they are on."""
        prompt, rest = (
            [i for i, s in zip(example.input_ids, example.segments, strict=True) if s == segment]
            for segment in (0, choice + 1)
        )
        output = self.plain(input_ids=torch.tensor([prompt + rest]), output_hidden_states=True)
        predicting = slice(len(prompt) - 1, None)
        hidden = [state[0, predicting] for state in output.hidden_states or () if state.dim() == 3]
        if self.plain.config.model_type in WITHOUT_EMBEDDINGS:
            hidden = [hidden[0], *hidden[:-2], hidden[-1]]  # the first stands for the embeddings; nobody reads it
        return output.logits[0, predicting, : self.vocabulary].float(), hidden

    def log_probs(self, example: Encoded, choice: int) -> torch.Tensor:
        """Log-probability [p] of each of a continuation's tokens and of the end of turn."""
        return token_log_probs(self.reference(example, choice)[0], tokens_of(example, choice))

    def scores(self, examples: Sequence[Encoded]) -> torch.Tensor:
        """[examples, labels], one after the other."""
        labels = range(len(VERDICT.labels))
        return torch.stack([torch.stack([self.log_probs(e, choice).sum() for choice in labels]) for e in examples])

    @cached_property
    def written(self) -> list[tuple[str, float]]:
        """Every prompt's greedy answer, alone."""
        return [greedy(self.plain, self.chat, prompt, NEW_TOKENS) for prompt in self.prompts]


def tokens_of(example: Encoded, choice: int) -> list[int]:
    return [t for t, c in zip(example.targets, example.choices, strict=True) if c == choice]


def token_log_probs(logits: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None])[:, 0]


@torch.no_grad()
def greedy(
    plain: Any, chat: ChatTokenizer, prompt: Sequence[int], most: int, ends: Collection[int] | None = None
) -> tuple[str, float]:
    """The growing sequence read anew for every token: the likeliest, until one of `ends` or a stop string.

    Text before that, and the mean log-probability of its tokens (of the end, where there is no other).
    """
    if ends is None:  # any special token is one
        special = {id for id, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
        ends = declared_ends(plain, chat) | special
    written: list[int] = []
    scores: list[float] = []
    while len(written) < most:
        logits = plain(input_ids=torch.tensor([[*prompt, *written]])).logits[0, -1].float()
        token = int(logits.argmax())
        log_probs = logits[: 1 + max(chat.tokenizer.get_vocab().values())].log_softmax(-1)
        if token in ends and written:
            break
        scores.append(float(log_probs[token]))
        if token in ends:
            break
        written.append(token)
        if STOP.search(text_of(chat, written)):
            break
    return STOP.split(text_of(chat, written))[0], sum(scores) / len(scores)


def declared_ends(plain: Any, chat: ChatTokenizer) -> set[int]:
    """Of the template, of the tokenizer and of the model's generation settings."""
    config: GenerationConfig = plain.generation_config
    declared = config.eos_token_id
    several = declared if isinstance(declared, list) else [declared]
    return {chat.end_id, chat.tokenizer.eos_token_id, *(i for i in several if i is not None)}


def text_of(chat: ChatTokenizer, ids: Sequence[int]) -> str:
    return chat.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def reads_pictures(name: str) -> Any:
    """The class with which plain transformers loads a family's folder."""
    return AutoModelForImageTextToText if name in PICTURES else AutoModelForCausalLM
