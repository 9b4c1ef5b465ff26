use candle_core::{Device, Tensor};

use super::{Sampler, SamplerKind, SamplerSettings};
use crate::Error;
use crate::noise::TorchGenerator;
use crate::schedule::{Prediction, SchedulerConfig};

/// As published with Stable Diffusion 1.5.
const SD15: &str = r#"{"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false, "num_train_timesteps": 1000,
    "set_alpha_to_one": false, "skip_prk_steps": true, "steps_offset": 1, "trained_betas": null}"#;
/// As published with SDXL.
const SDXL: &str = r#"{"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": false, "interpolation_type": "linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": false,
    "skip_prk_steps": true, "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": null,
    "use_karras_sigmas": false}"#;

fn config(json: &str) -> SchedulerConfig {
    SchedulerConfig::from_json(json.as_bytes()).unwrap()
}

fn named(name: &str, base: &str) -> SamplerSettings {
    SamplerSettings::named(name, &config(base)).unwrap()
}

fn refusal<T: std::fmt::Debug>(result: crate::Result<T>) -> String {
    match result.unwrap_err() {
        Error::Invalid(text) => text,
        other => panic!("not the caller's error: {other}"),
    }
}

fn sample(batch: usize) -> Tensor {
    Tensor::full(0.5f32, (batch, 2, 2, 4), &Device::Cpu).unwrap()
}

/// Runs a sampler on a denoiser that finds a fifth of its input to be noise.
fn finish(mut sampler: Sampler) -> Tensor {
    let mut noise = TorchGenerator::new(0);
    let mut x =
        noise.latents(4, 2, 2, &Device::Cpu).unwrap().affine(sampler.init_noise_sigma(), 0.0).unwrap();
    while !sampler.is_done() {
        let output = sampler.scale_model_input(&x).unwrap().affine(0.2, 0.0).unwrap();
        x = sampler.step(&output, &x, &mut noise).unwrap();
    }
    x
}

#[test]
fn published_configs_give_their_own_sampler() {
    let sd15 = SamplerSettings::from_config(&config(SD15)).unwrap();
    assert_eq!(sd15.kind(), SamplerKind::Pndm);
    // diffusers' PNDM visits the second of 20 timesteps twice.
    let sampler = sd15.sampler(20).unwrap();
    assert_eq!((sampler.len(), &sampler.timesteps()[..4]), (21, [951.0, 901.0, 901.0, 851.0].as_slice()));
    let sdxl = SamplerSettings::from_config(&config(SDXL)).unwrap();
    assert_eq!(sdxl.kind(), SamplerKind::Euler);
    assert_eq!(sdxl.sampler(4).unwrap().timesteps(), [751.0, 501.0, 251.0, 1.0]);
    assert!(refusal(SamplerSettings::from_config(&config("{}"))).contains("_class_name"));
}

#[test]
fn names_in_any_spelling() {
    for (name, kind) in [
        ("DPM++ 2M", SamplerKind::DpmMultistep),
        ("dpmpp_2m_sde", SamplerKind::DpmMultistep),
        ("k_dpmpp_2m", SamplerKind::DpmMultistep),
        ("dpm++ sde karras", SamplerKind::DpmSinglestep),
        ("DPMSolverSDEScheduler", SamplerKind::DpmSinglestep),
        ("dpmsolversinglestepscheduler", SamplerKind::DpmSinglestep),
        ("euler a", SamplerKind::EulerAncestral),
        ("k_euler_a", SamplerKind::EulerAncestral),
        ("euler_ancestral", SamplerKind::EulerAncestral),
        ("EULER", SamplerKind::Euler),
        ("uni_pc", SamplerKind::UniPc),
        ("LMS Karras", SamplerKind::Lms),
        ("plms", SamplerKind::Pndm),
        ("Heun Beta", SamplerKind::Heun),
        ("LCMScheduler", SamplerKind::Lcm),
    ] {
        assert_eq!(named(name, SDXL).kind(), kind, "{name}");
    }
    for kind in SamplerKind::all() {
        assert_eq!(named(kind.class_name(), SD15).kind(), kind);
    }
    for name in ["", "Euler Karras Karras", "DPM++ 2S a", "FlowMatchEulerDiscreteScheduler", "Karras"] {
        let text = refusal(SamplerSettings::named(name, &config(SDXL)));
        assert!(
            text.contains(&format!("{name:?}"))
                && text.contains("DPM++ 2M SDE")
                && text.contains("TCDScheduler")
        );
    }
}

#[test]
fn a_name_keeps_what_the_config_says_of_the_model() {
    let base = r#"{"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "use_karras_sigmas": true,
        "beta_schedule": "scaled_linear", "prediction_type": "v_prediction", "rescale_betas_zero_snr": true}"#;
    let euler = named("Euler", base);
    assert_eq!(euler.prediction(), Prediction::V);
    let sigmas = euler.sampler(10).unwrap().sigmas().to_vec();
    assert!((sigmas[0] - 4096.0).abs() < 1e-2, "zero terminal SNR: {sigmas:?}");
    // What it does not say is the class's default, as with from_config in diffusers: not DDIM's `leading`.
    let spread = named("DPM++ 2M", SD15).sampler(10).unwrap();
    assert_eq!(&spread.timesteps()[..3], [999.0, 899.0, 799.0]);
}

#[test]
fn schedule_types() {
    let sigmas = |settings: SamplerSettings| settings.sampler(10).unwrap().sigmas().to_vec();
    let base = || named("DPM++ 2M", SDXL);
    let with = |name: &str| sigmas(base().with_schedule_type(name).unwrap());
    assert_eq!(with("karras"), sigmas(named("DPM++ 2M Karras", SDXL)));
    assert_eq!(with("Automatic"), sigmas(base()));
    assert_eq!(with("Normal"), sigmas(base()));
    let all = ["Normal", "Karras", "Exponential", "Beta", "SGM Uniform"].map(with);
    for (i, a) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|b| a != b), "type {i} is like another");
    }
    // A type replaces the config's own.
    let karras = named("DPM++ 2M Karras", SDXL);
    assert_eq!(sigmas(karras.clone().with_schedule_type("uniform").unwrap()), sigmas(base()));
    assert_eq!(sigmas(karras.with_schedule_type("beta").unwrap()), with("beta"));

    assert!(refusal(base().with_schedule_type("quadratic")).contains("SGM Uniform"));
    assert!(refusal(named("DDIM", SDXL).with_schedule_type("Karras")).contains("DDIMScheduler"));
    assert!(refusal(SamplerSettings::named("LCM Karras", &config(SDXL))).contains("LCMScheduler"));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (class, field, value) in [
        ("DDIMScheduler", "thresholding", "true"),
        ("DDIMScheduler", "beta_schedule", "\"sigmoid\""),
        ("DDIMScheduler", "beta_start", "0"),
        ("DDIMScheduler", "trained_betas", "[0.1, 0.2]"),
        ("DDIMScheduler", "num_train_timesteps", "1"),
        ("DDIMScheduler", "timestep_spacing", "\"quadratic\""),
        ("DDPMScheduler", "variance_type", "\"learned_range\""),
        ("DDPMScheduler", "variance_type", "\"fixed_large_log\""),
        ("EulerDiscreteScheduler", "prediction_type", "\"flow_prediction\""),
        ("EulerDiscreteScheduler", "interpolation_type", "\"log_linear\""),
        ("EulerDiscreteScheduler", "timestep_type", "\"continuous\""),
        ("EulerDiscreteScheduler", "final_sigmas_type", "\"one\""),
        ("EulerDiscreteScheduler", "sigma_min", "-1"),
        ("EulerDiscreteScheduler", "sigma_min", "2, \"sigma_max\": 1"),
        ("EulerAncestralDiscreteScheduler", "prediction_type", "\"sample\""),
        ("LMSDiscreteScheduler", "rescale_betas_zero_snr", "true"),
        ("PNDMScheduler", "prediction_type", "\"sample\""),
        ("DPMSolverMultistepScheduler", "algorithm_type", "\"dpmsolver+++\""),
        ("DPMSolverMultistepScheduler", "final_sigmas_type", "\"zero\", \"algorithm_type\": \"dpmsolver\""),
        ("DPMSolverMultistepScheduler", "solver_order", "4"),
        ("DPMSolverMultistepScheduler", "solver_type", "\"rk4\""),
        ("DPMSolverMultistepScheduler", "use_lu_lambdas", "true"),
        ("DPMSolverMultistepScheduler", "use_karras_sigmas", "true, \"use_beta_sigmas\": true"),
        ("DPMSolverSinglestepScheduler", "algorithm_type", "\"sde-dpmsolver\""),
        ("UniPCMultistepScheduler", "use_flow_sigmas", "true"),
        ("UniPCMultistepScheduler", "solver_p", "{}"),
        ("UniPCMultistepScheduler", "solver_order", "0"),
        ("UniPCMultistepScheduler", "final_sigmas_type", "\"zero\", \"predict_x0\": false"),
        ("LCMScheduler", "original_inference_steps", "0"),
        ("TCDScheduler", "original_inference_steps", "1001"),
    ] {
        let json = format!(r#"{{"_class_name": "{class}", "{field}": {value}}}"#);
        let text = refusal(SamplerSettings::from_config(&config(&json)));
        assert!(text.contains(field) && text.contains("allowed"), "{json}: {text}");
    }
}

#[test]
fn numbers_of_steps() {
    for name in SamplerSettings::names() {
        let settings = named(name, SDXL);
        let max = settings.max_steps();
        for n in [0, max + 1, usize::MAX] {
            let text = refusal(settings.sampler(n));
            assert!(
                text.contains("num_inference_steps") && text.contains(&format!("1 to {max}")),
                "{name}: {text}"
            );
        }
    }
    assert_eq!(named("LCM", SDXL).max_steps(), 50);
    // Timestep 1000 does not exist.
    assert!(refusal(named("DDIM", SDXL).sampler(1000)).contains("steps_offset"));
    assert!(refusal(named("DPM++ 2M", SDXL).sampler(1000)).contains("fewer steps"));
    assert!(refusal(named("PNDM", r#"{"_class_name": "PNDMScheduler"}"#).sampler(3)).contains("4 at least"));
    let clipped = r#"{"lambda_min_clipped": 100}"#;
    assert!(refusal(named("DPM++ 2M", clipped).sampler(10)).contains("lambda_min_clipped"));
    let far_offset = format!(r#"{{"steps_offset": {}}}"#, usize::MAX);
    assert!(refusal(named("DDIM", &far_offset).sampler(10)).contains("steps_offset"));
    let zero_snr = r#"{"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"}"#;
    assert!(refusal(named("DDIM", zero_snr).sampler(10)).contains("epsilon"));
    let doubled_end = r#"{"final_sigmas_type": "sigma_min", "use_karras_sigmas": true}"#;
    assert!(refusal(named("UniPC", doubled_end).sampler(10)).contains("final_sigmas_type"));
}

#[test]
fn every_sampler_ends_in_finite_numbers() {
    for name in SamplerSettings::names() {
        for base in [SDXL, SD15] {
            for n in [1, 2, 3, 5, 7, 50] {
                let settings = named(name, base);
                let kinds = ["Automatic", "Karras", "Exponential", "Beta", "SGM Uniform"];
                for settings in
                    kinds.into_iter().filter_map(|kind| settings.clone().with_schedule_type(kind).ok())
                {
                    let x = finish(settings.sampler(n).unwrap());
                    let sum = x.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                    assert!(sum.is_finite() && sum > 0.0, "{name} {n}: {sum}");
                }
            }
        }
    }
}

#[test]
fn eta_is_for_those_that_have_it() {
    assert!(refusal(named("Euler", SDXL).with_eta(0.5)).contains("only 0"));
    assert!(refusal(named("DDIM", SDXL).with_eta(1.5)).contains("0 to 1"));
    assert!(refusal(named("TCD", SDXL).with_eta(f64::NAN)).contains("0 to 1"));
    named("Euler", SDXL).with_eta(0.0).unwrap();
}

#[test]
fn a_run_begins_and_ends_where_it_is_told() {
    let mut sampler = named("Euler", SDXL).sampler(10).unwrap();
    sampler.start_at(4);
    sampler.end_at(6);
    assert_eq!((sampler.position(), sampler.len(), sampler.timesteps().len()), (4, 6, 10));
    let (x, mut noise) = (sample(1), TorchGenerator::new(0));
    sampler.step(&x, &x, &mut noise).unwrap();
    assert!(!sampler.is_done());
    sampler.step(&x, &x, &mut noise).unwrap();
    assert!(sampler.is_done());
    for text in [
        refusal(sampler.step(&x, &x, &mut noise)),
        refusal(sampler.denoised(sampler.position(), &x, &x)),
        refusal(sampler.scale_model_input(&x)),
    ] {
        assert!(text.contains("all its 6 evaluations"), "{text}");
    }
    assert!(refusal(sampler.add_noise(&x, &x, 10)).contains("evaluation 10 of 10"));
    sampler.end_at(1000);
    assert_eq!(sampler.len(), 10);
}

/// Expected values: the lines of diffusers' pipelines, computed by hand.
#[test]
fn strength_and_hand_over_in_evaluations() {
    let euler = |n| named("Euler", SDXL).sampler(n).unwrap();
    assert_eq!([0.0, 0.3, 1.0].map(|strength| euler(20).index_of_strength(strength)), [20, 14, 0]);
    // 100 * 0.29 is 28.999999999999996, of which Python's int() leaves 28.
    assert_eq!(euler(100).index_of_strength(0.29), 72);
    assert_eq!(named("Heun", SDXL).sampler(20).unwrap().index_of_strength(0.3), 28);
    // Timesteps 751, 501, 251, 1: before and after 1000 - 800.
    assert_eq!((euler(4).index_of_denoising_end(0.8), euler(4).index_of_denoising_start(0.8)), (3, 3));
    // A timestep at the cutoff belongs to what comes before.
    assert_eq!((euler(4).index_of_denoising_end(0.499), euler(4).index_of_denoising_start(0.499)), (2, 2));
    // 751, 501, 501, 251, 251, 1, 1: the run begins with a step, not between its two evaluations.
    assert_eq!(named("Heun", SDXL).sampler(4).unwrap().index_of_denoising_start(0.8), 4);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut sampler = named("Euler a", SDXL).sampler(10).unwrap();
    let mut noise = TorchGenerator::new(0);
    assert!(refusal(sampler.step(&sample(2), &sample(1), &mut noise)).contains("[2, 2, 2, 4]"));
    // Of a batch each would need its own noise.
    assert!(refusal(sampler.step(&sample(2), &sample(2), &mut noise)).contains("batch of 2"));
    assert_eq!(sampler.position(), 0);
}

#[test]
fn stable_diffusion_pipelines_correct_old_configs() {
    let old = config(r#"{"_class_name": "DDIMScheduler"}"#);
    let corrected = SamplerSettings::from_config(&old.corrected_for_stable_diffusion()).unwrap();
    assert_eq!(corrected.sampler(4).unwrap().timesteps(), [751.0, 501.0, 251.0, 1.0]);
}
