//! A job on the wire: the request as JSON, its pictures beside it in the object store.

use std::time::{SystemTime, UNIX_EPOCH};

use async_nats::jetstream::object_store::ObjectStore;
use image::{DynamicImage, GrayImage, RgbImage};
use serde::{Deserialize, Serialize};

use super::broker::{self, Broker, MESSAGE_BYTES, failed};
use crate::engine::{EngineError, GenerationRequest, LoraChoice, Mode, Work};
use crate::picture::{self, Format};

/// What a worker gets.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct JobMessage {
    /// When it was submitted, in seconds since 1970.
    pub(super) created: u64,
    /// Objects that belong to it: pictures, and one more where `body` is there too.
    pub(super) objects: usize,
    /// What is wanted; where that is longer than a message may be, it is the last of the objects.
    body: Option<Body>,
}

/// [`Work`], with pictures by their number and LoRAs by their name.
#[derive(Debug, Serialize, Deserialize)]
struct Body {
    requests: Vec<(GenerationRequest, ModeOf)>,
    based_on: Vec<usize>,
    loras: Vec<(String, f64)>,
    model: String,
    seed_given: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum ModeOf {
    TextToImage,
    ImageToImage { image: usize, strength: f64 },
    Inpaint { image: usize, mask: usize, strength: f64 },
}

/// Seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn object(id: &str, number: usize) -> String {
    format!("{id}.{number}")
}

/// Stores a job's pictures, and gives its message.
pub(super) async fn pack(broker: &Broker, id: &str, model: &str, work: Work) -> Result<Vec<u8>, EngineError> {
    let mut pictures = Pictures::default();
    let body = Body::new(work, model, &mut pictures);
    let mut objects = pictures.encoded().await?;
    let mut message = JobMessage { created: now_s(), objects: objects.len(), body: Some(body) };
    let mut payload = serde_json::to_vec(&message).map_err(failed("a job"))?;
    if payload.len() > MESSAGE_BYTES {
        objects.push(serde_json::to_vec(&message.body).map_err(failed("a job"))?);
        message = JobMessage { objects: objects.len(), body: None, ..message };
        payload = serde_json::to_vec(&message).map_err(failed("a job"))?;
    }
    for (number, bytes) in objects.iter().enumerate() {
        broker::put(broker.inputs().await?, &object(id, number), bytes).await?;
    }
    Ok(payload)
}

impl JobMessage {
    /// The work, its pictures fetched; to be called once. `lora` finds the file of a name.
    pub(super) async fn unpack(
        &mut self,
        broker: &Broker,
        id: &str,
        lora: &(dyn Fn(&str) -> Option<LoraChoice> + Send + Sync),
    ) -> Result<Work, EngineError> {
        let store = broker.inputs().await?;
        let mut pictures = Vec::with_capacity(self.objects);
        let (body, count) = match self.body.take() {
            Some(body) => (body, self.objects),
            None => {
                let last = self.objects.saturating_sub(1);
                let bytes = fetch(store, id, last).await?;
                (serde_json::from_slice(&bytes).map_err(malformed)?, last)
            }
        };
        for number in 0..count {
            let bytes = fetch(store, id, number).await?;
            pictures.push(picture::decode(&bytes).map_err(malformed)?);
        }
        body.work(&pictures, lora)
    }

    /// Deletes what was stored with it.
    pub(super) async fn forget(&self, broker: &Broker, id: &str) {
        let Ok(store) = broker.inputs().await else { return };
        for number in 0..self.objects {
            if let Err(error) = store.delete(object(id, number)).await {
                tracing::debug!(%error, job = id, "a picture of a job is left to its age");
            }
        }
    }
}

/// One that is not there will not come any more; whatever else fails may do better later.
async fn fetch(store: &ObjectStore, id: &str, number: usize) -> Result<Vec<u8>, EngineError> {
    let name = object(id, number);
    match broker::exists(store, &name).await? {
        true => broker::get(store, &name).await,
        false => Err(malformed("its pictures are gone")),
    }
}

/// A job that no worker can read.
pub(super) fn malformed(error: impl std::fmt::Display) -> EngineError {
    EngineError::Invalid(format!("the job cannot be read: {error}"))
}

impl Body {
    fn new(work: Work, model: &str, pictures: &mut Pictures) -> Self {
        let Work { requests, based_on, loras, model: _, seed_given } = work;
        let mut travelling = |mode: &Mode| match mode {
            Mode::TextToImage => ModeOf::TextToImage,
            Mode::ImageToImage { image, strength } => {
                ModeOf::ImageToImage { image: pictures.number(image), strength: *strength }
            }
            Mode::Inpaint { image, mask, strength } => ModeOf::Inpaint {
                image: pictures.number(image),
                mask: pictures.number(&DynamicImage::ImageLuma8(mask.clone()).to_rgb8()),
                strength: *strength,
            },
        };
        let requests = requests.into_iter().map(|request| {
            let mode = travelling(&request.mode);
            (request, mode)
        });
        let requests = requests.collect();
        Self {
            requests,
            based_on: based_on.iter().map(|image| pictures.number(image)).collect(),
            loras: loras.iter().map(|lora| (name(lora), lora.scale)).collect(),
            model: model.to_owned(),
            seed_given,
        }
    }

    fn work(
        self,
        pictures: &[DynamicImage],
        lora: &(dyn Fn(&str) -> Option<LoraChoice> + Send + Sync),
    ) -> Result<Work, EngineError> {
        let find = |number: usize| pictures.get(number).ok_or_else(|| malformed("a picture is missing"));
        let colours = |number| -> Result<RgbImage, EngineError> { Ok(find(number)?.to_rgb8()) };
        let greys = |number| -> Result<GrayImage, EngineError> { Ok(find(number)?.to_luma8()) };
        let mode = |mode| {
            Ok::<_, EngineError>(match mode {
                ModeOf::TextToImage => Mode::TextToImage,
                ModeOf::ImageToImage { image, strength } => {
                    Mode::ImageToImage { image: colours(image)?, strength }
                }
                ModeOf::Inpaint { image, mask, strength } => {
                    Mode::Inpaint { image: colours(image)?, mask: greys(mask)?, strength }
                }
            })
        };
        let requests = self.requests.into_iter().map(|(request, of)| {
            let mode = mode(of)?;
            Ok(GenerationRequest { mode, ..request })
        });
        let loras = self.loras.into_iter().map(|(name, scale)| {
            let unknown = || EngineError::Invalid(format!("this worker has no LoRA {name:?}"));
            Ok(LoraChoice { scale, ..lora(&name).ok_or_else(unknown)? })
        });
        Ok(Work {
            requests: requests.collect::<Result<_, EngineError>>()?,
            based_on: self.based_on.into_iter().map(colours).collect::<Result<_, _>>()?,
            loras: loras.collect::<Result<_, EngineError>>()?,
            model: Some(self.model),
            seed_given: self.seed_given,
        })
    }
}

/// What a LoRA is called: its file's name without the extension.
fn name(lora: &LoraChoice) -> String {
    lora.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// A job's pictures, each once: all pictures of a request start from the same one.
#[derive(Default)]
struct Pictures(Vec<RgbImage>);

impl Pictures {
    fn number(&mut self, image: &RgbImage) -> usize {
        if let Some(known) = self.0.iter().position(|known| known == image) {
            return known;
        }
        self.0.push(image.clone());
        self.0.len() - 1
    }

    /// As PNG files, made off the threads that answer requests.
    async fn encoded(self) -> Result<Vec<Vec<u8>>, EngineError> {
        let encode = move || {
            let files = self.0.iter().map(|image| picture::encode_plain(image, Format::Png, 0));
            files.collect::<Result<Vec<_>, _>>()
        };
        let files = tokio::task::spawn_blocking(encode).await.map_err(failed("a job's pictures"))?;
        files.map_err(failed("a job's pictures"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_the_same_after_a_journey() {
        let image = RgbImage::from_fn(16, 8, |x, y| image::Rgb([x as u8 * 16, y as u8 * 32, 7]));
        let mask = GrayImage::from_fn(16, 8, |x, y| image::Luma([(x * 8 + y) as u8]));
        let mut inpaint = GenerationRequest::new("a \"quoted\" prompt\n", u64::MAX);
        inpaint.guidance_scale = Some(0.1 + 0.2);
        inpaint.mode = Mode::Inpaint { image: image.clone(), mask, strength: 1.0 / 3.0 };
        let mut again = inpaint.clone();
        again.mode = Mode::ImageToImage { image: image.clone(), strength: 0.5 };
        let work = Work {
            requests: vec![inpaint, again],
            based_on: vec![image],
            loras: vec![LoraChoice::new("/loras/ink.safetensors", -0.5)],
            model: Some("m".into()),
            seed_given: true,
        };
        let mut pictures = Pictures::default();
        let body = Body::new(work.clone(), "m", &mut pictures);
        assert_eq!(pictures.0.len(), 2, "one picture and one mask");
        let text = serde_json::to_string(&body).unwrap();
        let files = pictures.0.iter().map(|image| picture::encode_plain(image, Format::Png, 0).unwrap());
        let files: Vec<_> = files.map(|file| picture::decode(&file).unwrap()).collect();
        let body: Body = serde_json::from_str(&text).unwrap();
        let lora = |name: &str| Some(LoraChoice::new(format!("/loras/{name}.safetensors"), 1.0));
        let back = body.work(&files, &lora).unwrap();
        assert_eq!(format!("{back:?}"), format!("{work:?}"));
        let body: Body = serde_json::from_str(&text).unwrap();
        assert!(body.work(&files[..1], &lora).is_err(), "a picture is missing");
        let body: Body = serde_json::from_str(&text).unwrap();
        assert!(body.work(&files, &|_| None).is_err(), "a LoRA is missing");
    }
}
