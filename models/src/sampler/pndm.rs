//! PNDM: Liu et al. 2022, <https://arxiv.org/abs/2202.09778>. A linear multistep method on DDIM's steps (PLMS), after
//! a Runge-Kutta start (PRK) that latent diffusion models skip.

use std::collections::VecDeque;

use aquatint_kernels::weighted_sum;
use candle_core::Tensor;

use super::plan::{Evaluation, Plan, Solver};
use super::schedule::Schedule;
use crate::noise::TorchGenerator;
use crate::schedule::{Prediction, SchedulerConfig};
use crate::{Error, Result};

/// What PNDM reads from the config.
#[derive(Clone, Debug)]
pub(super) struct Pndm {
    skip_prk_steps: bool,
    set_alpha_to_one: bool,
}

/// Steps that are taken by Runge-Kutta where they are not skipped.
const PRK_STEPS: usize = 4;

impl Pndm {
    pub(super) fn from_config(config: &SchedulerConfig) -> Self {
        Self {
            skip_prk_steps: config.skip_prk_steps.unwrap_or(false),
            set_alpha_to_one: config.set_alpha_to_one.unwrap_or(false),
        }
    }

    pub(super) fn start(&self, schedule: &Schedule, n: usize) -> Result<(Plan, Box<dyn Solver>)> {
        let length = schedule.num_train_timesteps / n;
        let steps = schedule.whole_timesteps(n);
        let prk = if self.skip_prk_steps { Vec::new() } else { runge_kutta(&steps, (length / 2) as f64)? };
        let plms = match self.skip_prk_steps {
            // The second timestep comes twice: the first step is taken again with what was seen at its end.
            true => steps.iter().take(2).chain(steps.iter().skip(1)).copied().collect(),
            false => steps[PRK_STEPS - 1..].to_vec(),
        };
        let plan = Plan::looked_up(schedule, [prk.clone(), plms].concat())?;
        let steps = Steps {
            end: if self.set_alpha_to_one { 1.0 } else { schedule.alpha_cumprod(0.0, 1.0) },
            schedule: schedule.clone(),
            length: length as f64,
            prk,
            counter: 0,
            outputs: VecDeque::new(),
            first_sample: None,
            sum: None,
        };
        Ok((plan, Box::new(steps)))
    }
}

/// The timesteps of the Runge-Kutta start: of each of three steps both ends and twice its middle.
fn runge_kutta(steps: &[f64], half: f64) -> Result<Vec<f64>> {
    let Some(first) = steps.get(..PRK_STEPS) else {
        return Err(Error::invalid(format!(
            "num_inference_steps: {} is not allowed with PNDMScheduler: {PRK_STEPS} at least, unless skip_prk_steps \
             is true",
            steps.len()
        )));
    };
    Ok(first.windows(2).flat_map(|ends| [ends[0], ends[1] + half, ends[1] + half, ends[1]]).collect())
}

#[derive(Debug)]
struct Steps {
    schedule: Schedule,
    /// The signal's part of the variance at the end.
    end: f64,
    /// Training timesteps in a step.
    length: f64,
    /// Timesteps of the Runge-Kutta start.
    prk: Vec<f64>,
    /// Evaluations made; a run that starts further on (image-to-image) counts from there.
    counter: usize,
    /// Model outputs, the newest first.
    outputs: VecDeque<Tensor>,
    /// The sample that the first step, or a Runge-Kutta step, went from.
    first_sample: Option<Tensor>,
    /// The weighted sum of a Runge-Kutta step's outputs so far.
    sum: Option<Tensor>,
}

impl Solver for Steps {
    fn step(&mut self, at: Evaluation<'_>, _noise: &mut TorchGenerator) -> Result<Tensor> {
        let next =
            if self.counter < self.prk.len() { self.runge_kutta_step(&at)? } else { self.multistep(&at)? };
        self.counter += 1;
        Ok(next)
    }
}

impl Steps {
    fn runge_kutta_step(&mut self, at: &Evaluation<'_>) -> Result<Tensor> {
        let stage = self.counter % 4;
        let to = at.plan.timesteps[at.index] - if stage % 2 == 1 { 0.0 } else { (self.length / 2.0).floor() };
        let from = self.prk[self.counter - stage];
        if stage == 0 {
            self.remember(at.model_output);
            self.first_sample = Some(at.sample.clone());
        }
        let weight = [1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0][stage];
        let sum = match self.sum.take() {
            None => weighted_sum(&[(weight, at.model_output)])?,
            Some(sum) => weighted_sum(&[(1.0, &sum), (weight, at.model_output)])?,
        };
        let sample = self.first_sample.as_ref().unwrap_or(at.sample);
        if stage == 3 {
            return self.transfer(sample, from, to, &[(1.0, &sum)]);
        }
        let next = self.transfer(sample, from, to, &[(1.0, at.model_output)])?;
        self.sum = Some(sum);
        Ok(next)
    }

    fn multistep(&mut self, at: &Evaluation<'_>) -> Result<Tensor> {
        let t = at.plan.timesteps[at.index];
        if self.counter == 1 {
            // The first step again, with the mean of the outputs at its two ends.
            let sample = self.first_sample.take();
            let mut outputs = vec![(0.5, at.model_output)];
            outputs.extend(self.outputs.front().map(|first| (0.5, first)));
            return self.transfer(sample.as_ref().unwrap_or(at.sample), t + self.length, t, &outputs);
        }
        if self.counter == 0 {
            self.first_sample = Some(at.sample.clone());
        }
        self.remember(at.model_output);
        let weights: &[f64] = match self.outputs.len() {
            1 => &[1.0],
            2 => &[3.0 / 2.0, -1.0 / 2.0],
            3 => &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
            _ => &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
        };
        let outputs: Vec<_> = weights.iter().copied().zip(&self.outputs).collect();
        self.transfer(at.sample, t, t - self.length, &outputs)
    }

    fn remember(&mut self, model_output: &Tensor) {
        self.outputs.push_front(model_output.clone());
        self.outputs.truncate(PRK_STEPS);
    }

    /// A step of DDIM, equation 9 of the paper, between any two timesteps, with a weighted sum of model outputs.
    fn transfer(&self, sample: &Tensor, from: f64, to: f64, outputs: &[(f64, &Tensor)]) -> Result<Tensor> {
        let last = self.schedule.num_train_timesteps - 1;
        let (from, to) = (from.min(last as f64), to.min(last as f64));
        let (a, b) = (self.schedule.alpha_cumprod(from, self.end), self.schedule.alpha_cumprod(to, self.end));
        let of_epsilon = -(b - a) / (a * (1.0 - b).sqrt() + (a * (1.0 - a) * b).sqrt());
        let (of_sample, of_output) = match self.schedule.prediction {
            Prediction::V => ((1.0 - a).sqrt() * of_epsilon, a.sqrt() * of_epsilon),
            Prediction::Epsilon | Prediction::Sample | Prediction::Flow => (0.0, of_epsilon),
        };
        let mut terms = vec![((b / a).sqrt() + of_sample, sample)];
        terms.extend(outputs.iter().map(|(weight, output)| (of_output * weight, *output)));
        Ok(weighted_sum(&terms)?)
    }
}
