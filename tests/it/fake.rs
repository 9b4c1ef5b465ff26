//! A model that follows a script: it remembers what it is asked for, and its prompts say what goes wrong.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aquatint::engine::{Backend, Denoising, EngineError, GenerationRequest, LoraChoice, ModelInfo};
use aquatint_models::pipeline::Family;
use image::{Rgb, RgbImage};

/// What the fake is told, and what it saw.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) load_time: Duration,
    pub(crate) load_error: Option<EngineError>,
    pub(crate) step_time: Duration,
    pub(crate) caption_time: Duration,
    pub(crate) caption_error: Option<EngineError>,
    pub(crate) native_size_px: usize,
    pub(crate) guidance_scale: f64,
    pub(crate) seen: Arc<Mutex<Vec<GenerationRequest>>>,
    pub(crate) loras: Arc<Mutex<Vec<Vec<LoraChoice>>>>,
    pub(crate) captioned: Arc<AtomicUsize>,
    pub(crate) steps_taken: Arc<AtomicUsize>,
    pub(crate) decoded: Arc<AtomicUsize>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            load_time: Duration::ZERO,
            load_error: None,
            step_time: Duration::ZERO,
            caption_time: Duration::ZERO,
            caption_error: None,
            native_size_px: 1024,
            guidance_scale: 5.0,
            seen: Arc::default(),
            loras: Arc::default(),
            captioned: Arc::default(),
            steps_taken: Arc::default(),
            decoded: Arc::default(),
        }
    }
}

impl Script {
    pub(crate) fn load(self) -> Result<Fake, EngineError> {
        std::thread::sleep(self.load_time);
        match self.load_error.clone() {
            Some(error) => Err(error),
            None => Ok(Fake { script: self, lcm: false }),
        }
    }

    pub(crate) fn requests(&self) -> Vec<GenerationRequest> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn captioned(&self) -> usize {
        self.captioned.load(Ordering::SeqCst)
    }

    pub(crate) fn steps_taken(&self) -> usize {
        self.steps_taken.load(Ordering::SeqCst)
    }
}

pub(crate) struct Fake {
    script: Script,
    lcm: bool,
}

pub(crate) struct FakeDenoising {
    steps: usize,
    position: usize,
    size: (u32, u32),
    seed: u64,
}

impl Denoising for FakeDenoising {
    fn steps(&self) -> usize {
        self.steps
    }

    fn position(&self) -> usize {
        self.position
    }
}

impl Backend for Fake {
    type Denoising = FakeDenoising;

    fn info(&self) -> ModelInfo {
        ModelInfo {
            name: "fake".into(),
            family: Family::Sdxl,
            native_size_px: self.script.native_size_px,
            multiple_px: 8,
            num_inference_steps: if self.lcm { 4 } else { 20 },
            guidance_scale: if self.lcm { 1.0 } else { self.script.guidance_scale },
            scheduler: if self.lcm { "LCMScheduler".into() } else { "EulerDiscreteScheduler".into() },
            device: "cpu".into(),
            inpainting_unet: false,
            random_weights: true,
        }
    }

    fn set_loras(&mut self, loras: &[LoraChoice]) -> Result<(), EngineError> {
        self.script.loras.lock().unwrap().push(loras.to_vec());
        self.lcm = loras.iter().any(|l| l.lcm);
        match loras.iter().find(|l| l.path.ends_with("misfit.safetensors")) {
            Some(lora) => Err(EngineError::File {
                path: lora.path.clone(),
                reason: "no key of it fits this model".into(),
            }),
            None => Ok(()),
        }
    }

    /// The fake sees sizes alone.
    fn caption(&self, image: &RgbImage) -> Result<String, EngineError> {
        std::thread::sleep(self.script.caption_time);
        self.script.captioned.fetch_add(1, Ordering::SeqCst);
        match &self.script.caption_error {
            Some(error) => Err(error.clone()),
            None => Ok(format!("a picture of {} by {}", image.width(), image.height())),
        }
    }

    fn start(&self, request: &GenerationRequest) -> Result<FakeDenoising, EngineError> {
        self.script.seen.lock().unwrap().push(request.clone());
        match request.prompt.as_str() {
            "!invalid" => return Err(EngineError::Invalid("this cannot be painted".into())),
            "!memory" => return Err(EngineError::OutOfMemory("CUDA_ERROR_OUT_OF_MEMORY".into())),
            "!fail" => return Err(EngineError::Failed("the latents are not finite".into())),
            "!panic" => panic!("as the prompt says"),
            _ => {}
        }
        let side = |side: Option<usize>| side.unwrap_or(self.script.native_size_px) as u32;
        Ok(FakeDenoising {
            steps: request.num_inference_steps.unwrap_or(self.info().num_inference_steps),
            position: 0,
            size: (side(request.width), side(request.height)),
            seed: request.seed,
        })
    }

    fn step(&self, denoising: &mut FakeDenoising) -> Result<(), EngineError> {
        std::thread::sleep(self.script.step_time);
        self.script.steps_taken.fetch_add(1, Ordering::SeqCst);
        denoising.position += 1;
        Ok(())
    }

    fn decode(&self, denoising: &FakeDenoising) -> Result<RgbImage, EngineError> {
        self.script.decoded.fetch_add(1, Ordering::SeqCst);
        let [.., a, b, c] = denoising.seed.to_be_bytes();
        Ok(RgbImage::from_pixel(denoising.size.0, denoising.size.1, Rgb([a, b, c])))
    }
}
