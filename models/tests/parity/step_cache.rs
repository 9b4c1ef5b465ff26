//! Pictures whose steps reuse features, against diffusers' first-block cache and the package DeepCache
//! (`tests/reference/step_cache.py`), by the rule of `pipeline.rs`.

use std::collections::BTreeMap;

use aquatint_models::denoiser::{DeepCache, StepCache};
use aquatint_models::pipeline::GenerationRequest;
use image::RgbImage;
use serde_json::Value;

use crate::common::Fixture;
use crate::pipeline::{Model, differences, request};

struct Recorded {
    fixture: Fixture,
    cases: BTreeMap<String, Value>,
}

impl Recorded {
    fn open() -> Self {
        let fixture = Fixture::open("step_cache");
        let cases = serde_json::from_str(fixture.text("cases")).unwrap();
        Self { fixture, cases }
    }

    /// The names of a model's cases.
    fn of(&self, model: &str) -> Vec<String> {
        self.cases.keys().filter(|name| name.split('.').next() == Some(model)).cloned().collect()
    }

    fn request(&self, name: &str) -> GenerationRequest {
        let case = &self.cases[name];
        let number = |key: &str| case[key].as_u64().unwrap() as usize;
        let (cache, guidance) = match case.get("threshold") {
            Some(threshold) => (StepCache::FirstBlock { threshold: threshold.as_f64().unwrap() }, 3.5),
            None => {
                let cache = DeepCache { interval: number("interval"), branch_id: number("branch") };
                (StepCache::Deep(cache), 5.0)
            }
        };
        GenerationRequest { step_cache: Some(cache), ..request(case, guidance) }
    }

    fn differs(&self, name: &str, picture: &RgbImage) -> bool {
        let (beyond_1, worst) = differences(&self.fixture.tensor(name), picture);
        worst > 2 || beyond_1 > 0.01
    }
}

fn check_all(model: &str) {
    let (recorded, model_) = (Recorded::open(), Model::load(model));
    let names = recorded.of(model);
    assert!(names.len() > 1);
    for name in names {
        let request = recorded.request(&name);
        let picture = model_.pipeline().generate(&request).unwrap();
        assert!(!recorded.differs(&name, &picture), "{name}");
        let whole = GenerationRequest { step_cache: None, ..request.clone() };
        let picture = model_.pipeline().generate(&whole).unwrap();
        assert!(recorded.differs(&name, &picture), "{name}: nothing was reused");
        // Pictures that ask for nothing to be reused are the same to the byte.
        let none = match request.step_cache {
            Some(StepCache::Deep(cache)) => StepCache::Deep(DeepCache { interval: 1, ..cache }),
            _ => StepCache::FirstBlock { threshold: 0.0 },
        };
        let none = GenerationRequest { step_cache: Some(none), ..request };
        assert!(model_.pipeline().generate(&none).unwrap() == picture, "{name}");
    }
}

#[test]
fn flux_with_diffusers_first_block_cache() {
    check_all("flux_dev");
}

#[test]
fn sd15_with_deep_cache() {
    check_all("sd15");
}

#[test]
fn sdxl_with_deep_cache() {
    check_all("sdxl");
}

/// Of seven steps every third is computed whole, the first included.
#[test]
fn deep_cache_reuses_what_its_interval_says() {
    let model = Model::load("sd15");
    let recorded = Recorded::open();
    let cache = |interval| Some(StepCache::Deep(DeepCache { interval, branch_id: 0 }));
    let cases = [(None, 0), (cache(3), 4), (cache(2), 3), (cache(100), 6)];
    for ((step_cache, reused), guidance) in cases.into_iter().zip([1.0, 1.0, 5.0, 5.0]) {
        let request = GenerationRequest {
            step_cache,
            num_inference_steps: Some(7),
            guidance_scale: Some(guidance),
            scheduler: Some("Euler".to_owned()),
            ..recorded.request(&recorded.of("sd15")[0])
        };
        let mut denoising = model.pipeline().start(&request).unwrap();
        while !denoising.is_done() {
            model.pipeline().step(&mut denoising).unwrap();
        }
        assert_eq!(denoising.reused(), reused, "{step_cache:?}");
    }
}

/// Keeping features that are then not reused changes no byte.
#[test]
fn a_threshold_that_no_step_is_below_changes_nothing() {
    let (recorded, model) = (Recorded::open(), Model::load("flux_dev"));
    let request = recorded.request("flux_dev.few");
    let with =
        |step_cache| model.pipeline().generate(&GenerationRequest { step_cache, ..request.clone() }).unwrap();
    assert!(with(None) == with(Some(StepCache::FirstBlock { threshold: 0.1 })));
}

#[test]
fn every_setting_shows() {
    let (recorded, model) = (Recorded::open(), Model::load("sd15"));
    let request = recorded.request("sd15.finest");
    let picture = |interval, branch_id| {
        let step_cache = Some(StepCache::Deep(DeepCache { interval, branch_id }));
        model.pipeline().generate(&GenerationRequest { step_cache, ..request.clone() }).unwrap()
    };
    assert!(!recorded.differs("sd15.finest", &picture(3, 0)));
    for (interval, branch_id) in [(2, 0), (4, 0), (3, 1), (3, 3)] {
        assert!(recorded.differs("sd15.finest", &picture(interval, branch_id)), "{interval}, {branch_id}");
    }
}

#[test]
fn what_a_model_cannot_do_is_refused_by_name() {
    let (sd15, flux) = (Model::load("sd15"), Model::load("flux_schnell"));
    let refused = |model: &Model, cache| {
        let request = GenerationRequest { step_cache: Some(cache), ..GenerationRequest::new("a", 1) };
        model.pipeline().start(&request).unwrap_err().to_string()
    };
    let deep = |interval, branch_id| StepCache::Deep(DeepCache { interval, branch_id });
    let first = |threshold| StepCache::FirstBlock { threshold };
    assert!(refused(&sd15, deep(0, 0)).contains("cache_interval is 0: 1 to 100"));
    assert!(refused(&sd15, deep(101, 0)).contains("cache_interval is 101"));
    assert!(refused(&sd15, deep(2, 6)).contains("cache_branch_id is 6: this UNet has branches 0 to 5"));
    assert!(refused(&sd15, first(0.1)).contains("first_block_cache is for FLUX"));
    assert!(refused(&flux, deep(2, 0)).contains("cache_interval is for UNets"));
    for threshold in [-0.1, 1.5, f64::NAN, f64::INFINITY] {
        assert!(refused(&flux, first(threshold)).contains("first_block_cache is"), "{threshold}");
    }
}

/// A picture with features to reuse goes through the denoiser alone, whoever else is there, and comes out the same.
#[test]
fn others_in_the_batch_change_nothing() {
    let (recorded, model) = (Recorded::open(), Model::load("sd15"));
    let (cached, plain) = (recorded.request("sd15.next"), model.request("no_negative"));
    let pipeline = model.pipeline();
    let mut both = [pipeline.start(&cached).unwrap(), pipeline.start(&plain).unwrap()];
    assert!(!both[0].joins(&both[1]) && !both[1].joins(&both[0]));
    while both.iter().any(|d| !d.is_done()) {
        pipeline.step_together(&mut both.iter_mut().collect::<Vec<_>>()).unwrap();
    }
    assert!(pipeline.decode(&both[0]).unwrap() == pipeline.generate(&cached).unwrap());
    assert!(pipeline.decode(&both[1]).unwrap() == pipeline.generate(&plain).unwrap());
}
