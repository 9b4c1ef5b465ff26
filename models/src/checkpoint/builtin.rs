//! The model in the program itself: SDXL's architecture, tiny, with fixed random weights.
//!
//! It exists so that the program, its API and its tests run on a fresh machine without a network. Its pictures are
//! coloured noise that depends on the prompt; nothing was trained. It is loaded by the ordinary loader: only its
//! bytes come from elsewhere, the configs from the program, the weights from [`crate::checkpoint::synthetic`].

use crate::checkpoint::ModelFolder;

const VOCAB: &[u8] = include_bytes!("../../builtin/tokenizer/vocab.json");
const MERGES: &[u8] = include_bytes!("../../builtin/tokenizer/merges.txt");

static FILES: &[(&str, &[u8])] = &[
    ("model_index.json", include_bytes!("../../builtin/model_index.json")),
    ("scheduler/scheduler_config.json", include_bytes!("../../builtin/scheduler/scheduler_config.json")),
    ("text_encoder/config.json", include_bytes!("../../builtin/text_encoder/config.json")),
    ("text_encoder_2/config.json", include_bytes!("../../builtin/text_encoder_2/config.json")),
    ("tokenizer/merges.txt", MERGES),
    ("tokenizer/vocab.json", VOCAB),
    ("tokenizer/special_tokens_map.json", include_bytes!("../../builtin/tokenizer/special_tokens_map.json")),
    ("tokenizer_2/merges.txt", MERGES),
    ("tokenizer_2/vocab.json", VOCAB),
    (
        "tokenizer_2/special_tokens_map.json",
        include_bytes!("../../builtin/tokenizer_2/special_tokens_map.json"),
    ),
    ("unet/config.json", include_bytes!("../../builtin/unet/config.json")),
    ("vae/config.json", include_bytes!("../../builtin/vae/config.json")),
];

/// Its folder.
pub fn folder() -> ModelFolder {
    ModelFolder::Embedded(FILES)
}
