//! Every sampler against diffusers' scheduler, run with the same stand-in for the denoiser; recorded by
//! `reference/sampler.py`.

use aquatint_models::noise::TorchGenerator;
use aquatint_models::sampler::{Sampler, SamplerSettings};
use aquatint_models::schedule::SchedulerConfig;
use candle_core::{Device, Tensor};
use serde::Deserialize;

use crate::common::{Fixture, channels_last};

/// Of timesteps and sigmas, in units of the value where that is above 1.
const SCHEDULE_TOLERANCE: f64 = 1e-6;
/// Of samples, in units of the sample's largest value where that is above 1. Ours and the reference's are both f32,
/// and so are the reference's coefficients.
const SAMPLE_TOLERANCE: f64 = 5e-5;

#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    steps: usize,
    begin: usize,
    eta: f64,
    timesteps: usize,
    sigmas: usize,
    denoised: bool,
}

/// What a run leaves.
struct Outcome {
    timesteps: Vec<f64>,
    sigmas: Vec<f64>,
    /// Of the second evaluation, where it was recorded.
    denoised: Vec<f64>,
    sample: Vec<f64>,
}

fn numbers(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// A sample's values in torch's order.
fn channels_first(t: &Tensor) -> Vec<f64> {
    numbers(&t.permute((0, 3, 1, 2)).unwrap())
}

/// Values between -1/2 and 1/2 that tell every place from every other.
fn pattern() -> Tensor {
    let values: Vec<f32> = (0..60).map(|i| (i * 37 % 61 - 30) as f32 / 60.0).collect();
    channels_last(&Tensor::from_vec(values, (1, 4, 3, 5), &Device::Cpu).unwrap())
}

/// The script's `denoiser`.
fn denoiser(x: &Tensor, timestep: f64) -> Tensor {
    let u = timestep / 1000.0;
    let triangle = |u: f64| (u % 2.0 - 1.0).abs();
    let bent = (x / x.abs().unwrap().affine(1.0, 1.0).unwrap()).unwrap();
    let bent = bent.affine(0.6 + 0.6 * triangle(5.0 * u), 0.0).unwrap();
    (bent + pattern().affine(1.5 * triangle(7.0 * u) - 0.6, 0.0).unwrap()).unwrap()
}

fn settings(config: &serde_json::Value) -> SamplerSettings {
    let config = SchedulerConfig::from_json(config.to_string().as_bytes()).unwrap();
    SamplerSettings::from_config(&config).unwrap()
}

/// The script's `run`.
fn run(mut sampler: Sampler, case: &Case) -> Outcome {
    let mut generator = TorchGenerator::new(case.steps as u64);
    let noise = generator.latents(4, 3, 5, &Device::Cpu).unwrap();
    let mut sample = match case.begin {
        0 => noise.affine(sampler.init_noise_sigma(), 0.0).unwrap(),
        begin => sampler.add_noise(&pattern().affine(3.0, 0.0).unwrap(), &noise, begin).unwrap(),
    };
    sampler.start_at(case.begin);
    let mut denoised = Vec::new();
    while !sampler.is_done() {
        let position = sampler.position();
        let input = sampler.scale_model_input(&sample).unwrap();
        let output = denoiser(&input, sampler.timesteps()[position]);
        if case.denoised && position == case.begin + 1 {
            denoised = channels_first(&sampler.denoised(position, &output, &sample).unwrap());
        }
        sample = sampler.step(&output, &sample, &mut generator).unwrap();
    }
    Outcome {
        timesteps: sampler.timesteps().to_vec(),
        sigmas: sampler.sigmas().to_vec(),
        denoised,
        sample: channels_first(&sample),
    }
}

/// The largest difference, each in units of `unit` of the expected value.
fn difference(actual: &[f64], expected: &[f64], unit: impl Fn(f64) -> f64) -> f64 {
    if actual.len() != expected.len() {
        return f64::INFINITY;
    }
    let differences = actual.iter().zip(expected).map(|(a, e)| (a - e).abs() / unit(*e));
    differences.fold(0.0, |max, d| if d.is_nan() || d > max { d } else { max })
}

fn schedule_difference(actual: &[f64], expected: &[f64]) -> f64 {
    difference(actual, expected, |value| value.abs().max(1.0))
}

fn sample_difference(actual: &[f64], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(1.0, |max: f64, v| max.max(v.abs()));
    difference(actual, expected, |_| largest)
}

/// The cases of a fixture with what diffusers left of each.
fn cases(fixture: &str) -> Vec<(Case, Outcome)> {
    let fixture = Fixture::open(&format!("sampler_{fixture}"));
    let cases: Vec<Case> = serde_json::from_str(fixture.text("cases")).unwrap();
    let [mut timesteps, mut sigmas, mut denoised, mut samples] =
        ["timesteps", "sigmas", "denoised", "samples"].map(|name| numbers(&fixture.tensor(name)).into_iter());
    let with_outcome = |case: Case| {
        let take = |values: &mut std::vec::IntoIter<f64>, n| values.by_ref().take(n).collect();
        let outcome = Outcome {
            timesteps: take(&mut timesteps, case.timesteps),
            sigmas: take(&mut sigmas, case.sigmas),
            denoised: take(&mut denoised, if case.denoised { 60 } else { 0 }),
            sample: take(&mut samples, 60),
        };
        (case, outcome)
    };
    cases.into_iter().map(with_outcome).collect()
}

/// Runs every case of a fixture; all that fail are told.
fn check(fixture: &str) {
    let cases = cases(fixture);
    assert!(cases.len() > 20, "{fixture} has only {} cases", cases.len());
    let (mut failures, mut worst) = (Vec::new(), [0.0f64; 4]);
    for (case, expected) in &cases {
        let sampler = settings(&case.config).with_eta(case.eta).unwrap().sampler(case.steps).unwrap();
        // A sample that starts at sigma 4096 (zero terminal SNR) is no finer than that allows.
        let of_sample = SAMPLE_TOLERANCE + f64::from(f32::EPSILON) * sampler.init_noise_sigma();
        let actual = run(sampler, case);
        let differences = [
            schedule_difference(&actual.timesteps, &expected.timesteps),
            schedule_difference(&actual.sigmas, &expected.sigmas),
            sample_difference(&actual.denoised, &expected.denoised),
            sample_difference(&actual.sample, &expected.sample),
        ];
        let allowed = [SCHEDULE_TOLERANCE, SCHEDULE_TOLERANCE, of_sample, of_sample];
        if differences.iter().zip(allowed).any(|(d, allowed)| d.is_nan() || *d > allowed) {
            let Case { config, steps, begin, eta, .. } = case;
            failures.push(format!("{config} steps {steps} begin {begin} eta {eta}: {differences:?}"));
        }
        worst = std::array::from_fn(|i| worst[i].max(differences[i]));
    }
    println!("{fixture}: {} cases; timesteps, sigmas, denoised, samples differ by {worst:?}", cases.len());
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

macro_rules! fixtures {
    ($($name:ident),*) => { $(#[test] fn $name() { check(stringify!($name)); })* };
}
fixtures!(
    ddim,
    ddpm,
    dpm_multistep,
    dpm_multistep_sde,
    dpm_multistep_variants,
    dpm_singlestep,
    euler,
    euler_ancestral,
    heun,
    lcm,
    lms,
    pndm,
    tcd,
    unipc,
    unipc_variants
);

/// Fixtures whose second case is a run of 20 steps on Stable Diffusion's betas, one a sampler.
const SAMPLERS: [&str; 13] = [
    "euler",
    "heun",
    "lms",
    "dpm_multistep",
    "dpm_multistep_sde",
    "dpm_singlestep",
    "unipc",
    "euler_ancestral",
    "ddim",
    "ddpm",
    "pndm",
    "lcm",
    "tcd",
];
/// Those of them that can space their sigmas in other ways come first.
const WITH_SIGMA_KINDS: usize = 7;
/// How far a change has to move a sample for its fixture to be called sensitive to it.
const SENSITIVE: f64 = 20.0 * SAMPLE_TOLERANCE;

fn second_case(fixture: &str) -> (Case, Vec<f64>) {
    let (case, expected) = cases(fixture).swap_remove(1);
    assert_eq!((case.steps, case.begin), (20, 0), "{fixture}");
    (case, expected.sample)
}

/// How far a fixture's second case moves with other values in its config.
fn moved(fixture: &str, changes: &[(&str, serde_json::Value)]) -> f64 {
    let (mut case, expected) = second_case(fixture);
    for (field, value) in changes {
        case.config[*field] = value.clone();
    }
    sample_difference(&run(settings(&case.config).sampler(20).unwrap(), &case).sample, &expected)
}

#[test]
fn another_config_is_noticed() {
    for fixture in SAMPLERS {
        for change in [("prediction_type", "v_prediction".into()), ("beta_end", 0.013.into())] {
            let moved = moved(fixture, std::slice::from_ref(&change));
            assert!(moved > SENSITIVE, "{fixture}, {}: moves by {moved:e}", change.0);
        }
    }
    for fixture in SAMPLERS.iter().filter(|name| !["dpm_singlestep", "lcm", "tcd"].contains(name)) {
        let moved = moved(fixture, &[("timestep_spacing", "trailing".into())]);
        assert!(moved > SENSITIVE, "{fixture}, spacing: moves by {moved:e}");
    }
    for (i, fixture) in SAMPLERS.iter().enumerate() {
        for kind in ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"] {
            let moved = moved(fixture, &[(kind, true.into())]);
            assert_eq!(moved > SENSITIVE, i < WITH_SIGMA_KINDS, "{fixture}, {kind}: moves by {moved:e}");
        }
    }
    for fixture in ["dpm_multistep", "dpm_multistep_sde", "dpm_singlestep", "unipc"] {
        let moved = moved(fixture, &[("solver_order", 1.into())]);
        assert!(moved > SENSITIVE, "{fixture}, solver_order: moves by {moved:e}");
    }
}

#[test]
fn another_length_start_or_eta_is_noticed() {
    for fixture in SAMPLERS {
        let (case, expected) = second_case(fixture);
        let settings = settings(&case.config);
        let shorter = run(settings.sampler(19).unwrap(), &case).sample;
        let later = run(settings.sampler(20).unwrap(), &Case { begin: 10, ..case }).sample;
        for moved in [shorter, later].map(|sample| sample_difference(&sample, &expected)) {
            assert!(moved > SENSITIVE, "{fixture}: moves by {moved:e}");
        }
    }
    for fixture in ["ddim", "tcd"] {
        let (case, expected) = second_case(fixture);
        let sampler = settings(&case.config).with_eta(0.1).unwrap().sampler(20).unwrap();
        assert!(sample_difference(&run(sampler, &case).sample, &expected) > SENSITIVE, "{fixture}");
    }
}

#[test]
fn samplers_are_told_apart() {
    let samples: Vec<_> = SAMPLERS.iter().map(|name| (name, second_case(name).1)).collect();
    for (i, (a, sample)) in samples.iter().enumerate() {
        for (b, other) in &samples[..i] {
            let difference = sample_difference(sample, other);
            // DDIM is Euler's method in other variables, and so is DDPM the ancestral one.
            let one = [("ddim", "euler"), ("ddpm", "euler_ancestral")].contains(&(**a, **b));
            assert_eq!(difference > SENSITIVE, !one, "{a} and {b} differ by {difference:e}");
        }
    }
}
