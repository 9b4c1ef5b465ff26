//! Textual inversions: embeddings of a new token, trained for one concept. <https://arxiv.org/abs/2208.01618>

use std::path::Path;

use candle_core::{DType, Device, Tensor};

use crate::checkpoint::safetensors_file::SafetensorsFile;
use crate::{Error, Result};

/// The vectors that stand for a token in the prompt.
#[derive(Clone, Debug)]
pub struct TextualInversion {
    /// The token, where the file names it; else the file's own name is the custom.
    pub token: Option<String>,
    /// For the only text encoder, or SDXL's CLIP-L: `(vectors, channels)`, f32 on the CPU.
    pub text_encoder: Option<Tensor>,
    /// For SDXL's OpenCLIP bigG: `(vectors, channels)`.
    pub text_encoder_2: Option<Tensor>,
}

/// Names of the tensors in files that do not name the token: the web UI's, SDXL trainers', diffusers' scripts'.
const FIRST: [&str; 3] = ["emb_params", "clip_l", "text_encoders_0"];
const SECOND: [&str; 2] = ["clip_g", "text_encoders_1"];

impl TextualInversion {
    /// Opens a file in the web UI's style (`emb_params`, or `clip_l` and `clip_g`) or diffusers' (`<token>`).
    ///
    /// # Errors
    /// Where the file holds neither, several tokens, or something else than vectors.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::new(&SafetensorsFile::open(path)?)
    }

    /// The same over an open file.
    pub fn new(file: &SafetensorsFile) -> Result<Self> {
        let one_of = |names: &[&str]| {
            let name = names.iter().find(|name| file.entries().contains_key(**name));
            name.map(|name| vectors(file, name)).transpose()
        };
        let (first, second) = (one_of(&FIRST)?, one_of(&SECOND)?);
        if first.is_none() && second.is_none() {
            let mut names = file.entries().keys();
            return match (names.next(), names.next()) {
                (Some(token), None) => Self::of_token(file, token),
                _ => {
                    let count = file.entries().len();
                    let known = [&FIRST[..], &SECOND[..]].concat().join(", ");
                    let reason =
                        format!("no textual inversion: {known} or the vectors of one token are needed");
                    Err(Error::file(file.path(), format!("{reason}, it holds {count} tensors")))
                }
            };
        }
        if let (Some(first), Some(second)) = (&first, &second)
            && first.dim(0)? != second.dim(0)?
        {
            let (a, b) = (first.dim(0)?, second.dim(0)?);
            let reason =
                format!("{a} vectors for one text encoder and {b} for the other: as many are needed");
            return Err(Error::file(file.path(), reason));
        }
        Ok(Self { token: None, text_encoder: first, text_encoder_2: second })
    }

    /// The vectors that a file has under the name of their token.
    pub(crate) fn of_token(file: &SafetensorsFile, token: &str) -> Result<Self> {
        Ok(Self {
            token: Some(token.to_owned()),
            text_encoder: Some(vectors(file, token)?),
            text_encoder_2: None,
        })
    }
}

/// One vector, or several, as `(vectors, channels)`.
fn vectors(file: &SafetensorsFile, name: &str) -> Result<Tensor> {
    let shape = match file.entries().get(name).map(|entry| &entry.shape[..]) {
        Some(&[channels]) if channels > 0 => (1, channels),
        Some(&[count, channels]) if count > 0 && channels > 0 => (count, channels),
        shape => {
            let reason =
                format!("{name} has shape {:?}, (vectors, channels) is needed", shape.unwrap_or_default());
            return Err(Error::file(file.path(), reason));
        }
    };
    Ok(file.tensor(name, &Device::Cpu)?.to_dtype(DType::F32)?.reshape(shape)?)
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::{Dtype, TensorView, serialize};

    use super::*;

    fn file(tensors: &[(&str, &[usize])]) -> SafetensorsFile {
        let bytes: Vec<u8> = (0..64u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
        let views = tensors.iter().map(|(name, shape)| {
            let length = 4 * shape.iter().product::<usize>();
            (*name, TensorView::new(Dtype::F32, shape.to_vec(), &bytes[..length]).unwrap())
        });
        SafetensorsFile::from_bytes("cat.safetensors", serialize(views, None).unwrap()).unwrap()
    }

    fn read(tensors: &[(&str, &[usize])]) -> Result<TextualInversion> {
        TextualInversion::new(&file(tensors))
    }

    #[test]
    fn both_styles_are_read() {
        let ours = read(&[("emb_params", &[2, 3])]).unwrap();
        let vectors = ours.text_encoder.unwrap().to_vec2::<f32>().unwrap();
        assert_eq!((ours.token, vectors), (None, vec![vec![0.0, 1.0, 2.0], vec![3.0, 4.0, 5.0]]));

        let ours = read(&[("<cat-toy>", &[4])]).unwrap();
        let vectors = ours.text_encoder.unwrap().to_vec2::<f32>().unwrap();
        assert_eq!((ours.token.as_deref(), vectors), (Some("<cat-toy>"), vec![vec![0.0, 1.0, 2.0, 3.0]]));

        for (first, second) in [("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")] {
            let ours = read(&[(first, &[2, 3]), (second, &[2, 5])]).unwrap();
            assert_eq!(ours.text_encoder.unwrap().dims(), [2, 3]);
            assert_eq!(ours.text_encoder_2.unwrap().dims(), [2, 5]);
        }
    }

    #[test]
    fn other_files_are_refused() {
        let refused = |tensors: &[(&str, &[usize])]| read(tensors).unwrap_err().to_string();
        assert!(refused(&[]).contains("0 tensors"));
        assert!(refused(&[("a", &[3]), ("b", &[3])]).contains("2 tensors"));
        assert!(refused(&[("emb_params", &[1, 2, 3])]).contains("emb_params has shape [1, 2, 3]"));
        assert!(refused(&[("emb_params", &[0, 3])]).contains("emb_params has shape [0, 3]"));
        assert!(refused(&[("clip_l", &[1, 3]), ("clip_g", &[2, 5])]).contains("1 vectors"));
    }
}
