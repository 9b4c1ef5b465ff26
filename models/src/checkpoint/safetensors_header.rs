//! The header of a safetensors file, read with bounds on everything that it may hold, so that no header takes long or
//! much memory.
//!
//! Source: the format's description in <https://github.com/huggingface/safetensors>, which allows neither two tensors
//! of one name nor gaps between tensors. The crate's own reader lets the last of two tensors of one name count.

use std::collections::BTreeMap;
use std::fmt;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Tensors of a file; published models have a few thousand.
const MAX_TENSORS: usize = 1 << 14;
/// Entries of the free text.
const MAX_TEXTS: usize = 1 << 12;
const MAX_DIMENSIONS: usize = 8;
const TEXTS: &str = "__metadata__";

/// What a header says.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, Info>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// One tensor's entry.
#[derive(Debug, Deserialize)]
pub(super) struct Info {
    pub(super) dtype: Dtype,
    #[serde(deserialize_with = "shape")]
    pub(super) shape: Vec<usize>,
    pub(super) data_offsets: (usize, usize),
}

impl Header {
    /// Reads a header and checks that its tensors lie one after the other, each as long as its shape says. The error
    /// is a reason.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let header: Self = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        let mut infos: Vec<(String, TensorInfo)> = Vec::with_capacity(header.tensors.len());
        for (name, Info { dtype, shape, data_offsets }) in &header.tensors {
            let (dtype, data_offsets) = (*dtype, *data_offsets);
            infos.push((name.clone(), TensorInfo { dtype, shape: shape.clone(), data_offsets }));
        }
        infos.sort_by_key(|(_, info)| info.data_offsets);
        Metadata::new(None, infos).map_err(|e| e.to_string())?;
        Ok(header)
    }

    /// Bytes of all tensors.
    pub(super) fn data_len(&self) -> usize {
        self.tensors.values().map(|info| info.data_offsets.1).max().unwrap_or(0)
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("tensors by their names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut header, mut texts) = (Header::default(), None);
                while let Some(name) = map.next_key::<String>()? {
                    if name == TEXTS {
                        let Texts(read) = map.next_value()?;
                        if texts.replace(()).is_some() {
                            return Err(twice(TEXTS));
                        }
                        header.metadata = read;
                        continue;
                    }
                    let info = map.next_value()?;
                    insert(&mut header.tensors, name, info, MAX_TENSORS)?;
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// The free text; `null` is none.
struct Texts(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("texts by their names")
            }

            fn visit_unit<E: Error>(self) -> Result<Texts, E> {
                Ok(Texts(BTreeMap::new()))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Texts, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some((name, text)) = map.next_entry::<String, String>()? {
                    insert(&mut entries, name, text, MAX_TEXTS)?;
                }
                Ok(Texts(entries))
            }
        }
        deserializer.deserialize_any(Entries)
    }
}

fn insert<T, E: Error>(
    entries: &mut BTreeMap<String, T>,
    name: String,
    value: T,
    most: usize,
) -> Result<(), E> {
    if entries.len() == most {
        return Err(E::custom(format!("more than {most} entries")));
    }
    if entries.contains_key(&name) {
        return Err(twice(&name));
    }
    entries.insert(name, value);
    Ok(())
}

fn twice<E: Error>(name: &str) -> E {
    E::custom(format!("{name} stands in it twice"))
}

fn shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Extents;
    impl<'de> Visitor<'de> for Extents {
        type Value = Vec<usize>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a shape")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<usize>, A::Error> {
            let mut shape = Vec::new();
            while let Some(extent) = seq.next_element()? {
                if shape.len() == MAX_DIMENSIONS {
                    return Err(A::Error::custom(format!("more than {MAX_DIMENSIONS} dimensions")));
                }
                shape.push(extent);
            }
            Ok(shape)
        }
    }
    deserializer.deserialize_seq(Extents)
}
