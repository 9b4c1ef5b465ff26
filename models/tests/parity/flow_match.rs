//! The flow-matching sampler against diffusers' scheduler as FLUX's pipelines call it; recorded by
//! `reference/flow_match.py`.

use std::collections::BTreeMap;

use aquatint_models::noise::TorchGenerator;
use aquatint_models::sampler::FlowMatch;
use aquatint_models::schedule::SchedulerConfig;
use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::common::{Fixture, channels_last};

fn configs(fixture: &Fixture) -> BTreeMap<String, SchedulerConfig> {
    let configs: BTreeMap<String, Value> = serde_json::from_str(fixture.text("configs")).unwrap();
    let read = |v: Value| SchedulerConfig::from_json(v.to_string().as_bytes()).unwrap();
    configs.into_iter().map(|(name, v)| (name, read(v))).collect()
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

#[test]
fn timesteps_and_sigmas_of_every_config() {
    let fixture = Fixture::open("flow_match");
    let configs = configs(&fixture);
    let mut compared = 0;
    for name in fixture.names().filter(|n| n.contains('/')) {
        let [config, steps, tokens] = name.split('/').collect::<Vec<_>>().try_into().unwrap();
        let flow = FlowMatch::from_config(&configs[config]).unwrap();
        let sampler = flow.sampler(steps.parse().unwrap(), tokens.parse().unwrap()).unwrap();
        let expected = numbers(&fixture.tensor(name));
        let (timesteps, sigmas) = expected.split_at(expected.len() / 2);
        for (what, ours, expected) in [
            ("timestep", sampler.timesteps(), timesteps),
            ("sigma", &sampler.sigmas()[..sigmas.len()], sigmas),
        ] {
            assert_eq!(ours.len(), expected.len(), "{name}");
            for (a, e) in ours.iter().zip(expected) {
                assert!((a - e).abs() <= 1e-6 * e.abs(), "{name}: a {what} is {a}, expected {e}");
            }
        }
        assert_eq!(sampler.sigmas().last(), Some(&0.0));
        compared += 1;
    }
    assert_eq!(compared, 355);
}

#[test]
fn one_step_stretched_to_a_terminal_sigma_stays_finite() {
    let fixture = Fixture::open("flow_match");
    let flow = FlowMatch::from_config(&configs(&fixture)["terminal"]).unwrap();
    assert_eq!(flow.sampler(1, 4096).unwrap().sigmas(), [1.0, 0.0]);
}

/// From a noised picture on, with the script's stand-in for the denoiser.
#[test]
fn a_run_from_a_picture() {
    let fixture = Fixture::open("flow_match");
    let mut config = configs(&fixture)["dev"].clone();
    // The script's mu of 0.7 whatever the picture.
    (config.base_shift, config.max_shift) = (Some(0.7), Some(0.7));
    let mut sampler = FlowMatch::from_config(&config).unwrap().sampler(5, 1).unwrap();
    let ramp = |from: f32, to: f32| {
        let values: Vec<f32> = (0..120).map(|i| from + (to - from) * i as f32 / 119.0).collect();
        channels_last(&Tensor::from_vec(values, (1, 4, 6, 5), &Device::Cpu).unwrap())
    };
    let expected = channels_last(&fixture.tensor("run"));
    let mut sample = sampler.add_noise(&ramp(1.0, -1.0).sin().unwrap(), &ramp(-2.0, 2.0), 1).unwrap();
    sampler.start_at(1);
    for i in 0..5 {
        let of_step = expected.narrow(0, i, 1).unwrap();
        let worst = numbers(&(&sample - of_step).unwrap()).into_iter().fold(0.0, |m: f64, d| m.max(d.abs()));
        assert!(worst <= 2e-6, "step {i}: differs by {worst:e}");
        if !sampler.is_done() {
            let output =
                sample.affine(2.0, 0.0).unwrap().cos().unwrap().affine(1.0, i as f64 / 10.0).unwrap();
            sample = sampler.step(&output, &sample, &mut TorchGenerator::new(0)).unwrap();
        }
    }
    assert!(sampler.is_done());
}

/// The formula, with noise of the request's own generator: diffusers draws it from the global one.
#[test]
fn stochastic_sampling_draws_fresh_noise() {
    let fixture = Fixture::open("flow_match");
    let mut config = configs(&fixture)["schnell"].clone();
    config.stochastic_sampling = Some(true);
    let mut sampler = FlowMatch::from_config(&config).unwrap().sampler(4, 16).unwrap();
    let sample = Tensor::full(2f32, (1, 4, 4, 4), &Device::Cpu).unwrap();
    let output = Tensor::full(0.5f32, (1, 4, 4, 4), &Device::Cpu).unwrap();
    let next = sampler.step(&output, &sample, &mut TorchGenerator::new(3)).unwrap();
    let noise = TorchGenerator::new(3).latents(4, 4, 4, &Device::Cpu).unwrap();
    // x0 = 2 - 1.0 * 0.5; sigma goes from 1 to 0.75.
    for (ours, noise) in numbers(&next).into_iter().zip(numbers(&noise)) {
        assert!((ours - (0.25 * 1.5 + 0.75 * noise)).abs() < 1e-6);
    }
}
