//! A model that follows a script: it remembers what it is asked for, and its prompts say what goes wrong.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aquatint::engine::{
    Backend, Denoising, DeviceMemory, EngineError, GenerationRequest, LoraChoice, ModelInfo, Preset,
};
use aquatint_models::pipeline::Family;
use image::{Rgb, RgbImage};

/// What the fake is told, and what it saw.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) load_time: Duration,
    pub(crate) load_error: Option<EngineError>,
    pub(crate) step_time: Duration,
    pub(crate) caption_time: Duration,
    pub(crate) merge_time: Duration,
    pub(crate) caption_error: Option<EngineError>,
    pub(crate) native_size_px: usize,
    pub(crate) guidance_scale: f64,
    pub(crate) family: Family,
    pub(crate) edits_pictures: bool,
    pub(crate) fallback_for: Option<String>,
    pub(crate) seen: Arc<Mutex<Vec<GenerationRequest>>>,
    pub(crate) loras: Arc<Mutex<Vec<Vec<LoraChoice>>>>,
    pub(crate) captioned: Arc<AtomicUsize>,
    pub(crate) steps_taken: Arc<AtomicUsize>,
    pub(crate) decoded: Arc<AtomicUsize>,
    /// What goes wrong in one of the calls of the model, counted from 0 over all that are made.
    pub(crate) fault: Option<(usize, Broken)>,
    pub(crate) calls: Arc<AtomicUsize>,
    /// What each further picture in a step adds to its time, in parts of `step_time`.
    pub(crate) batch_cost: f64,
    /// The seeds of each step, in the order of the steps.
    pub(crate) steps: Arc<Mutex<Vec<Vec<u64>>>>,
    pub(crate) loads: Arc<AtomicUsize>,
    pub(crate) previews: Arc<AtomicUsize>,
    pub(crate) freed: Arc<AtomicUsize>,
    /// A device with memory of its own, and what the loaded model takes of it.
    pub(crate) memory: Option<(Arc<Mutex<DeviceMemory>>, u64)>,
    /// A line for each start and each step, with the seed: what several processes did is in one file.
    pub(crate) journal: Option<PathBuf>,
}

/// A way in which a call of the model goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Broken {
    Error,
    Memory,
    Panic,
    NotFinite,
    Hang(Duration),
    Lost,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            load_time: Duration::ZERO,
            load_error: None,
            step_time: Duration::ZERO,
            caption_time: Duration::ZERO,
            merge_time: Duration::ZERO,
            caption_error: None,
            native_size_px: 1024,
            guidance_scale: 5.0,
            family: Family::Sdxl,
            edits_pictures: false,
            fallback_for: None,
            seen: Arc::default(),
            loras: Arc::default(),
            captioned: Arc::default(),
            steps_taken: Arc::default(),
            decoded: Arc::default(),
            fault: None,
            calls: Arc::default(),
            batch_cost: 1.0,
            steps: Arc::default(),
            loads: Arc::default(),
            previews: Arc::default(),
            freed: Arc::default(),
            memory: None,
            journal: None,
        }
    }
}

impl Script {
    pub(crate) fn load(self) -> Result<Fake, EngineError> {
        std::thread::sleep(self.load_time);
        self.loads.fetch_add(1, Ordering::SeqCst);
        if let Some(error) = self.load_error.clone() {
            return Err(error);
        }
        if let Some((device, bytes)) = &self.memory {
            let mut device = device.lock().unwrap();
            if device.available() < *bytes {
                return Err(EngineError::OutOfMemory(format!("{bytes} bytes are needed")));
            }
            (device.free, device.held) = (device.free - bytes, device.held + bytes);
            device.used += bytes;
            device.peak = device.peak.max(device.used);
        }
        Ok(Fake { script: self, preset: None })
    }

    pub(crate) fn requests(&self) -> Vec<GenerationRequest> {
        self.seen.lock().unwrap().clone()
    }

    /// One call of the model: it may be the one that goes wrong.
    fn call(&self) -> Result<(), EngineError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        match self.fault.filter(|(at, _)| *at == call).map(|(_, broken)| broken) {
            None => Ok(()),
            Some(Broken::Error) => Err(EngineError::Failed("it does not work".into())),
            Some(Broken::Memory) => Err(EngineError::OutOfMemory("CUDA_ERROR_OUT_OF_MEMORY".into())),
            Some(Broken::Panic) => panic!("as the script says"),
            Some(Broken::NotFinite) => Err(EngineError::NotFinite("the latents are not finite".into())),
            Some(Broken::Lost) => Err(EngineError::DeviceLost("CUDA_ERROR_LAUNCH_FAILED".into())),
            Some(Broken::Hang(time)) => {
                std::thread::sleep(time);
                Ok(())
            }
        }
    }

    fn note(&self, what: &str, seed: u64) {
        if let Some(path) = &self.journal {
            let mut file = File::options().append(true).create(true).open(path).unwrap();
            file.write_all(format!("{what} {seed} {}\n", std::process::id()).as_bytes()).unwrap();
        }
    }

    /// The pixel that a picture of this seed has after so many steps, however they were made.
    pub(crate) fn pixel(seed: u64, steps: usize) -> [u8; 3] {
        let state = (0..steps).fold(seed, |state, _| next(state));
        let [.., a, b, c] = state.to_be_bytes();
        [a, b, c]
    }

    pub(crate) fn captioned(&self) -> usize {
        self.captioned.load(Ordering::SeqCst)
    }

    pub(crate) fn steps_taken(&self) -> usize {
        self.steps_taken.load(Ordering::SeqCst)
    }
}

/// Latents after one more step.
fn next(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407).rotate_left(17)
}

pub(crate) struct Fake {
    script: Script,
    preset: Option<Preset>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some((device, bytes)) = &self.script.memory {
            let mut device = device.lock().unwrap();
            (device.free, device.held) = (device.free + bytes, device.held - bytes);
            device.used -= bytes;
        }
    }
}

pub(crate) struct FakeDenoising {
    steps: usize,
    position: usize,
    size: (u32, u32),
    seed: u64,
    latents: u64,
}

impl Denoising for FakeDenoising {
    fn steps(&self) -> usize {
        self.steps
    }

    fn position(&self) -> usize {
        self.position
    }

    fn joins(&self, other: &Self) -> bool {
        self.size == other.size
    }
}

impl Backend for Fake {
    type Denoising = FakeDenoising;

    fn info(&self) -> ModelInfo {
        ModelInfo {
            name: "fake".into(),
            family: self.script.family,
            native_size_px: self.script.native_size_px,
            multiple_px: 8,
            num_inference_steps: self.preset.map_or(20, |p| p.num_inference_steps),
            guidance_scale: self.preset.map_or(self.script.guidance_scale, |p| p.guidance_scale),
            scheduler: self.preset.and_then(|p| p.scheduler).unwrap_or("EulerDiscreteScheduler").into(),
            device: "cpu".into(),
            needs_mask: false,
            edits_pictures: self.script.edits_pictures,
            memory: None,
            fallback_for: self.script.fallback_for.clone(),
            random_weights: true,
            preset: self.preset,
        }
    }

    fn set_loras(&mut self, loras: &[LoraChoice]) -> Result<(), EngineError> {
        self.script.call()?;
        std::thread::sleep(self.script.merge_time);
        self.script.loras.lock().unwrap().push(loras.to_vec());
        self.preset = loras.iter().rev().find_map(|l| l.preset);
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
        self.script.call()?;
        std::thread::sleep(self.script.caption_time);
        self.script.captioned.fetch_add(1, Ordering::SeqCst);
        match &self.script.caption_error {
            Some(error) => Err(error.clone()),
            None => Ok(format!("a picture of {} by {}", image.width(), image.height())),
        }
    }

    fn start(&self, request: &GenerationRequest) -> Result<FakeDenoising, EngineError> {
        self.script.call()?;
        self.script.seen.lock().unwrap().push(request.clone());
        match request.prompt.as_str() {
            "!invalid" => return Err(EngineError::Invalid("this cannot be painted".into())),
            "!memory" => return Err(EngineError::OutOfMemory("CUDA_ERROR_OUT_OF_MEMORY".into())),
            "!fail" => return Err(EngineError::NotFinite("the latents are not finite".into())),
            "!panic" => panic!("as the prompt says"),
            "!abort" => {
                self.script.note("start", request.seed);
                std::process::abort();
            }
            _ => {}
        }
        self.script.note("start", request.seed);
        let side = |side: Option<usize>| side.unwrap_or(self.script.native_size_px) as u32;
        Ok(FakeDenoising {
            steps: request.num_inference_steps.unwrap_or(self.info().num_inference_steps),
            position: 0,
            size: (side(request.width), side(request.height)),
            seed: request.seed,
            latents: request.seed,
        })
    }

    fn step(&self, batch: &mut [&mut FakeDenoising]) -> Result<(), EngineError> {
        let script = &self.script;
        script.call()?;
        let further = (batch.len() - 1) as f64 * script.batch_cost;
        std::thread::sleep(script.step_time.mul_f64(1.0 + further));
        script.steps_taken.fetch_add(batch.len(), Ordering::SeqCst);
        script.steps.lock().unwrap().push(batch.iter().map(|denoising| denoising.seed).collect());
        for denoising in batch {
            script.note("step", denoising.seed);
            denoising.position += 1;
            denoising.latents = next(denoising.latents);
        }
        Ok(())
    }

    fn decode(&self, denoising: &FakeDenoising, _sparing: bool) -> Result<RgbImage, EngineError> {
        self.script.call()?;
        self.script.decoded.fetch_add(1, Ordering::SeqCst);
        let [.., a, b, c] = denoising.seed.to_be_bytes();
        let (width, height) = denoising.size;
        let mut image = RgbImage::from_pixel(width, height, Rgb([a, b, c]));
        // The seed everywhere, and in the last pixel what the steps have made of it.
        let [.., a, b, c] = denoising.latents.to_be_bytes();
        image.put_pixel(width - 1, height - 1, Rgb([a, b, c]));
        Ok(image)
    }

    fn preview(&self, denoising: &FakeDenoising) -> Result<Option<RgbImage>, EngineError> {
        self.script.previews.fetch_add(1, Ordering::SeqCst);
        let [.., a, b, c] = denoising.latents.to_be_bytes();
        Ok(Some(RgbImage::from_pixel(1, 1, Rgb([a, b, c]))))
    }

    fn device_memory(&self) -> Option<DeviceMemory> {
        self.script.memory.as_ref().map(|(device, _)| *device.lock().unwrap())
    }

    /// As if every decoding had to be repeated.
    fn repeated(&self) -> u64 {
        self.script.decoded.load(Ordering::SeqCst) as u64
    }

    fn free_memory(&self) {
        self.script.freed.fetch_add(1, Ordering::SeqCst);
    }
}
