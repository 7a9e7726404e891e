"""Small random models, built by the tests and saved as the real ones are: what runs on them is the code that runs on those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEXT = ("a photograph of the sky and green grass with some trees under bright light in front of an old wooden house near water "
        "user assistant chat between curious artificial intelligence gives helpful detailed polite answers to questions describe this "
        "image its style very manner")
CHAT = ("{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}{% if part['type'] == 'image' %}"
        "<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}ASSISTANT:")  # as LLaVA-1.5's own, for servers


def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer that was trained on a few words, with the special tokens of LLaVA."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    core.train_from_iterator([TEXT] * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=special,
                                                          initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                                        extra_special_tokens={"image_token": "<image>"})
    tokenizer.padding_side = "left"
    return tokenizer


def tiny_llava(folder: Path, seed: int = 0, image_px: int = 56) -> Path:
    """A LLaVA-1.5 of some thousand parameters with its processor: CLIP tower of 14 px patches, two Llama layers."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaProcessor
    from transformers import LlavaForConditionalGeneration as Llava

    tokenizer = tiny_tokenizer()
    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
                              image_size=image_px, patch_size=14)
    text = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                       num_key_value_heads=4, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
                         vision_feature_layer=-2, vision_feature_select_strategy="default")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Llava(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0)  # the usual start is so small that the picture would not change a word
    model.generation_config.pad_token_id = 3
    model.save_pretrained(folder)
    pictures = CLIPImageProcessorPil(size={"shortest_edge": image_px}, crop_size={"height": image_px, "width": image_px})
    LlavaProcessor(image_processor=pictures, tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default",
                   num_additional_image_tokens=1, chat_template=CHAT).save_pretrained(folder)
    return folder
