//! Finished pictures, by everything that determined them.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard, PoisonError};

use image::{GrayImage, RgbImage};

use crate::engine::{DeepCache, GenerationRequest, LoraChoice, Mode, Picture, StepCache, Work};

/// What stands for a job: two hashes, as one alone could meet by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(u64, u64);

impl Key {
    /// The key of a job whose caller gave the seed; others are never repeated.
    pub(super) fn of(work: &Work) -> Option<Self> {
        let Work { requests, based_on, loras, model, seed_given } = work;
        if !seed_given {
            return None;
        }
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            salt.hash(&mut hasher);
            model.hash(&mut hasher);
            for LoraChoice { path, scale, preset } in loras {
                (path, scale.to_bits(), preset.map(|p| p.name)).hash(&mut hasher);
            }
            for image in based_on {
                hash_picture(image, &mut hasher);
            }
            requests.len().hash(&mut hasher);
            for request in requests {
                hash_request(request, &mut hasher);
            }
            hasher.finish()
        };
        Some(Self(half(0), half(1)))
    }
}

/// Every field is named, so that a new one cannot be forgotten.
fn hash_request(request: &GenerationRequest, hasher: &mut impl Hasher) {
    let GenerationRequest {
        prompt,
        negative_prompt,
        width,
        height,
        num_inference_steps,
        guidance_scale,
        true_cfg_scale,
        max_sequence_length,
        seed,
        variation,
        scheduler,
        clip_skip,
        mode,
        latent_resize,
        masked_content,
        step_cache,
        micro_conditioning,
    } = request;
    (prompt, negative_prompt, width, height, num_inference_steps).hash(hasher);
    (guidance_scale.map(f64::to_bits), seed, scheduler, clip_skip).hash(hasher);
    (true_cfg_scale.map(f64::to_bits), max_sequence_length).hash(hasher);
    variation.map(|v| (v.seed, v.strength.to_bits())).hash(hasher);
    (latent_resize, masked_content).hash(hasher);
    step_cache
        .map(|cache| match cache {
            StepCache::FirstBlock { threshold } => (0, threshold.to_bits(), 0),
            StepCache::Deep(DeepCache { interval, branch_id }) => (1, interval as u64, branch_id),
        })
        .hash(hasher);
    let micro = micro_conditioning;
    (micro.original_size, micro.crops_coords_top_left, micro.target_size).hash(hasher);
    match mode {
        Mode::TextToImage => 0u8.hash(hasher),
        Mode::ImageToImage { image, strength } => {
            (1u8, strength.to_bits()).hash(hasher);
            hash_picture(image, hasher);
        }
        Mode::Inpaint { image, mask, strength } => {
            (2u8, strength.to_bits()).hash(hasher);
            hash_picture(image, hasher);
            hash_mask(mask, hasher);
        }
    }
}

fn hash_picture(image: &RgbImage, hasher: &mut impl Hasher) {
    image.dimensions().hash(hasher);
    image.as_raw().hash(hasher);
}

fn hash_mask(mask: &GrayImage, hasher: &mut impl Hasher) {
    mask.dimensions().hash(hasher);
    mask.as_raw().hash(hasher);
}

/// Pictures of the last jobs, bounded by their bytes.
#[derive(Debug)]
pub(super) struct PictureCache {
    limit_bytes: usize,
    jobs: Mutex<Jobs>,
}

#[derive(Debug, Default)]
struct Jobs {
    /// With the time of their last use, as a count.
    by_key: HashMap<Key, (u64, Vec<Picture>)>,
    bytes: usize,
    uses: u64,
}

impl PictureCache {
    pub(super) fn new(limit_bytes: usize) -> Self {
        Self { limit_bytes, jobs: Mutex::default() }
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pictures of such a job.
    pub(super) fn get(&self, key: Key) -> Option<Vec<Picture>> {
        let mut jobs = self.jobs();
        jobs.uses += 1;
        let now = jobs.uses;
        let (used, pictures) = jobs.by_key.get_mut(&key)?;
        *used = now;
        Some(pictures.clone())
    }

    /// Keeps a job's pictures, in place of those that were not asked for longest.
    pub(super) fn insert(&self, key: Key, pictures: &[Picture]) {
        let bytes = bytes(pictures);
        if bytes > self.limit_bytes {
            return;
        }
        let mut jobs = self.jobs();
        jobs.uses += 1;
        let now = jobs.uses;
        if let Some((_, old)) = jobs.by_key.insert(key, (now, pictures.to_vec())) {
            jobs.bytes -= self::bytes(&old);
        }
        jobs.bytes += bytes;
        while jobs.bytes > self.limit_bytes {
            let oldest = jobs.by_key.iter().min_by_key(|(_, (used, _))| *used).map(|(key, _)| *key);
            let Some((_, old)) = oldest.and_then(|key| jobs.by_key.remove(&key)) else { return };
            jobs.bytes -= self::bytes(&old);
        }
    }
}

fn bytes(pictures: &[Picture]) -> usize {
    pictures.iter().map(|picture| picture.image.as_raw().len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::recipe::Recipe;

    fn work(seed: u64) -> Work {
        Work { requests: vec![GenerationRequest::new("a", seed)], seed_given: true, ..Work::default() }
    }

    fn key(work: &Work) -> Key {
        Key::of(work).unwrap()
    }

    #[test]
    fn whatever_changes_the_picture_changes_the_key() {
        assert_eq!(key(&work(1)), key(&work(1)));
        assert_eq!(Key::of(&Work { seed_given: false, ..work(1) }), None);
        let picture = |value| RgbImage::from_pixel(2, 2, image::Rgb([value; 3]));
        let mut keys: Vec<Key> = vec![key(&work(1))];
        let deep = |interval, branch_id| Some(StepCache::Deep(DeepCache { interval, branch_id }));
        for step_cache in [deep(2, 0), deep(3, 0), deep(2, 1), Some(StepCache::FirstBlock { threshold: 0.1 })]
        {
            let mut work = work(1);
            work.requests[0].step_cache = step_cache;
            keys.push(key(&work));
        }
        let changed: [fn(&mut GenerationRequest); 10] = [
            |r| r.prompt.push('b'),
            |r| r.negative_prompt = Some(String::new()),
            |r| r.seed = 2,
            |r| r.width = Some(8),
            |r| r.height = Some(8),
            |r| r.guidance_scale = Some(2.0),
            |r| r.true_cfg_scale = Some(2.0),
            |r| r.max_sequence_length = Some(256),
            |r| r.scheduler = Some("Euler".into()),
            |r| r.clip_skip = 1,
        ];
        for change in changed {
            let mut work = work(1);
            change(&mut work.requests[0]);
            keys.push(key(&work));
        }
        for (value, strength) in [(0, 0.5), (1, 0.5), (0, 0.6)] {
            let mut work = work(1);
            work.requests[0].mode = Mode::ImageToImage { image: picture(value), strength };
            keys.push(key(&work));
        }
        keys.push(key(&Work { model: Some("b".into()), ..work(1) }));
        keys.push(key(&Work { loras: vec![LoraChoice::new("a", 1.0)], ..work(1) }));
        keys.push(key(&Work { loras: vec![LoraChoice::new("a", 0.5)], ..work(1) }));
        keys.push(key(&Work { based_on: vec![picture(0)], ..work(1) }));
        let different: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(different.len(), keys.len());
    }

    #[test]
    fn what_was_not_asked_for_longest_goes_first() {
        let info = aquatint_models::pipeline::ModelInfo {
            name: "m".into(),
            family: aquatint_models::pipeline::Family::Sd15,
            native_size_px: 64,
            multiple_px: 8,
            num_inference_steps: 1,
            guidance_scale: 1.0,
            scheduler: "Euler".into(),
            device: "cpu".into(),
            needs_mask: false,
            edits_pictures: false,
            memory: None,
            fallback_for: None,
            random_weights: true,
            preset: None,
        };
        let recipe = Recipe::new(&GenerationRequest::new("a", 1), (10, 10), &info, &[]);
        let made = [Picture { image: RgbImage::new(10, 10), recipe, elapsed_ms: 1.0 }];
        let cache = PictureCache::new(700);
        let [a, b, c] = [1, 2, 3].map(|seed| key(&work(seed)));
        cache.insert(a, &made);
        cache.insert(b, &made);
        assert!(cache.get(a).is_some());
        cache.insert(c, &made);
        assert_eq!([a, b, c].map(|key| cache.get(key).is_some()), [true, false, true]);
        assert_eq!(cache.jobs().bytes, 600);
    }
}
