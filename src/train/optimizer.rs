//! AdamW and SGD, equal to PyTorch's, with a state that can be saved.
//!
//! tch's own optimizers neither give nor take their state, so a run could not be resumed. On the CPU the update is one pass over
//! plain memory that also clears the gradients; elsewhere it is tensor operations.

use std::collections::HashMap;

use anyhow::{ensure, Context, Result};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::slices::{is_plain, numbers, CHUNK};
use crate::config::{OptimizerKind, TrainConfig};

/// PyTorch's default for Adam's division.
const EPS: f64 = 1e-8;
/// Variables whose learning rate has the factor `train.backbone_lr`.
const BACKBONE: &str = "backbone.body.";
/// The entry of a saved state that holds how often each parameter was updated.
const STEPS: &str = "steps";

/// An update rule.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019): `torch.optim.AdamW`.
    Adamw { betas: [f64; 2] },
    /// `torch.optim.SGD`, without dampening or Nesterov.
    Sgd { momentum: f64 },
}

impl Rule {
    /// Tensors of state for each parameter.
    fn buffers(self) -> usize {
        match self {
            Self::Adamw { .. } => 2,
            Self::Sgd { momentum } => usize::from(momentum != 0.0),
        }
    }
}

/// A variable that trains.
#[derive(Debug)]
struct Parameter {
    name: String,
    variable: Tensor,
    /// Weight decay.
    decay: f64,
    /// Factor of the learning rate.
    rate: f64,
    /// Updates so far: 0 until the variable has its first gradient. From then on, no gradient counts as one of zeros, as
    /// it is after clearing, so that a resumed run does what the uninterrupted one would.
    steps: u64,
    /// AdamW: averages of the gradient and of its square. SGD: the momentum buffer. Shaped as the variable.
    state: Vec<Tensor>,
}

impl Parameter {
    /// The gradient to update from, if there is one.
    fn gradient(&self) -> Option<Tensor> {
        let gradient = self.variable.grad();
        match gradient.defined() {
            true => Some(gradient),
            false if self.steps > 0 => Some(self.variable.detach().zeros_like()),
            false => None,
        }
    }
}

/// Updates variables from their gradients.
#[derive(Debug)]
pub struct Optimizer {
    rule: Rule,
    parameters: Vec<Parameter>,
}

impl Optimizer {
    /// For those of the variables that take gradients, in the order given (sorted by name, so that runs are repeatable).
    ///
    /// One-dimensional variables are norms and biases: they decay only with `train.decay_norms`. Variables of the backbone have
    /// `train.backbone_lr` as a factor of the learning rate.
    pub fn new(variables: &[(String, Tensor)], config: &TrainConfig) -> Self {
        let rule = match config.optimizer {
            OptimizerKind::Adamw => Rule::Adamw { betas: config.betas },
            OptimizerKind::Sgd => Rule::Sgd { momentum: config.momentum },
        };
        let parameter = |(name, variable): &(String, Tensor)| Parameter {
            name: name.clone(),
            variable: variable.shallow_clone(),
            decay: if variable.dim() > 1 || config.decay_norms { config.weight_decay } else { 0.0 },
            rate: if name.starts_with(BACKBONE) { config.backbone_lr } else { 1.0 },
            steps: 0,
            state: (0..rule.buffers()).map(|_| variable.detach().zeros_like()).collect(),
        };
        let parameters = variables.iter().filter(|(_, v)| v.requires_grad()).map(parameter).collect();
        Self { rule, parameters }
    }

    /// Numbers that train.
    pub fn numbers(&self) -> usize {
        self.parameters.iter().map(|p| p.variable.numel()).sum()
    }

    /// 2-norm of all gradients together; not finite if one of them is not. The same whatever the number of threads.
    pub fn gradient_norm(&self) -> f64 {
        let gradients: Vec<Tensor> =
            self.parameters.iter().map(|p| p.variable.grad()).filter(Tensor::defined).collect();
        let (plain, other): (Vec<&Tensor>, Vec<&Tensor>) = gradients.iter().partition(|g| is_plain(g));
        let chunks: Vec<&[f32]> = plain
            .iter()
            // SAFETY: nothing writes to gradients while this runs; each is there once.
            .flat_map(|gradient| unsafe { &*numbers(gradient) }.chunks(CHUNK))
            .collect();
        // Partial sums are added in order.
        let sums: Vec<f64> = chunks.into_par_iter().map(sum_of_squares).collect();
        let mut total: f64 = sums.iter().sum();
        if !other.is_empty() {
            let norms: Vec<Tensor> = other.iter().map(|g| g.norm().to_kind(Kind::Float)).collect();
            total += Tensor::stack(&norms, 0).square().sum(Kind::Double).double_value(&[]);
        }
        total.sqrt()
    }

    /// Updates every variable with its gradient times `scale`, at learning rate `lr`, and clears the gradients.
    pub fn step(&mut self, lr: f64, scale: f64) {
        tch::no_grad(|| self.update(lr, scale));
    }

    fn update(&mut self, lr: f64, scale: f64) {
        let rule = self.rule;
        let mut updated: Vec<(&mut Parameter, Tensor)> =
            self.parameters.iter_mut().filter_map(|p| p.gradient().map(|g| (p, g))).collect();
        let mut jobs = Vec::new();
        for (parameter, gradient) in &mut updated {
            parameter.steps += 1;
            let update = Update::new(rule, lr * parameter.rate, parameter.decay, scale, parameter.steps);
            let parameter: &Parameter = parameter;
            if !is_plain(&parameter.variable) || !is_plain(gradient) {
                update.tensors(&parameter.variable, gradient, &parameter.state);
                continue;
            }
            // SAFETY: the gradient, the variable and the state are four different tensors, each parameter has its own, and the training
            // loop does nothing else with them during this call.
            let (mut weights, mut gradient) = unsafe { (numbers(&parameter.variable), numbers(gradient)) };
            let mut state: Vec<&mut [f32]> = parameter.state.iter().map(|s| unsafe { numbers(s) }).collect();
            while !weights.is_empty() {
                let n = weights.len().min(CHUNK);
                let job = Job {
                    update,
                    weights: weights.split_off_mut(..n).unwrap_or_default(),
                    gradient: gradient.split_off_mut(..n).unwrap_or_default(),
                    state: state.iter_mut().map(|s| s.split_off_mut(..n).unwrap_or_default()).collect(),
                };
                jobs.push(job);
            }
        }
        jobs.into_par_iter().for_each(Job::run);
    }

    /// Everything that a resumed run needs beside the variables, by name; the tensors share memory with this.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let steps: Vec<i64> = self.parameters.iter().map(|p| p.steps as i64).collect();
        let mut entries = vec![(STEPS.to_string(), Tensor::from_slice(&steps))];
        for parameter in &self.parameters {
            for (i, state) in parameter.state.iter().enumerate() {
                entries.push((format!("{i}.{}", parameter.name), state.shallow_clone()));
            }
        }
        entries
    }

    /// Takes up what [`Optimizer::state`] gave.
    ///
    /// # Errors
    /// If an entry is missing or has another shape: it comes from another model or another optimizer.
    pub fn load_state(&mut self, state: &HashMap<String, Tensor>) -> Result<()> {
        let get = |name: &str| {
            state
                .get(name)
                .with_context(|| format!("it has no optimizer state `{name}`: another model or optimizer?"))
        };
        let steps: Vec<i64> = get(STEPS)?.try_into()?;
        ensure!(
            steps.len() == self.parameters.len(),
            "its optimizer updates {} variables, not {}",
            steps.len(),
            self.parameters.len()
        );
        for (parameter, steps) in self.parameters.iter_mut().zip(steps) {
            parameter.steps = steps as u64;
            for (i, own) in parameter.state.iter().enumerate() {
                let saved = get(&format!("{i}.{}", parameter.name))?;
                ensure!(
                    saved.size() == own.size(),
                    "its optimizer state of {} has shape {:?}, not {:?}",
                    parameter.name,
                    saved.size(),
                    own.size()
                );
                own.shallow_clone().copy_(saved);
            }
        }
        Ok(())
    }
}

/// Sum of squares of a chunk, in float64, in eight running sums that the compiler keeps in vectors.
fn sum_of_squares(values: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    let (eights, rest) = values.as_chunks::<8>();
    for eight in eights {
        for (sum, v) in sums.iter_mut().zip(eight) {
            *sum += f64::from(*v) * f64::from(*v);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>()
}

/// One parameter's update in numbers.
#[derive(Clone, Copy, Debug)]
struct Update {
    rule: Rule,
    lr: f64,
    decay: f64,
    /// Factor of the gradient.
    scale: f64,
    /// AdamW: lr / (1 − β₁ᵗ).
    size: f64,
    /// AdamW: √(1 − β₂ᵗ).
    correction: f64,
}

impl Update {
    fn new(rule: Rule, lr: f64, decay: f64, scale: f64, steps: u64) -> Self {
        let (size, correction) = match rule {
            Rule::Adamw { betas } => {
                let left = |beta: f64| 1.0 - beta.powf(steps as f64);
                (lr / left(betas[0]), left(betas[1]).sqrt())
            }
            Rule::Sgd { .. } => (lr, 1.0),
        };
        Self { rule, lr, decay, scale, size, correction }
    }

    /// The update as tensor operations, for any device, kind and layout.
    fn tensors(&self, variable: &Tensor, gradient: &Tensor, state: &[Tensor]) {
        let (mut variable, mut cleared) = (variable.detach(), gradient.shallow_clone());
        let gradient = gradient * self.scale;
        let mut state = state.iter().map(Tensor::shallow_clone);
        match (self.rule, state.next(), state.next()) {
            (Rule::Adamw { betas }, Some(mut mean), Some(mut square)) => {
                let _ = variable.g_mul_scalar_(1.0 - self.lr * self.decay);
                let _ = mean.lerp_(&gradient, 1.0 - betas[0]);
                let _ = square.g_mul_scalar_(betas[1]);
                square += gradient.square() * (1.0 - betas[1]);
                variable -= mean / (square.sqrt() / self.correction + EPS) * self.size;
            }
            (Rule::Sgd { momentum }, buffer, _) => {
                let gradient = gradient + &variable * self.decay;
                variable -= match buffer {
                    Some(mut buffer) => {
                        let _ = buffer.g_mul_scalar_(momentum);
                        buffer += gradient;
                        buffer * self.lr
                    }
                    None => gradient * self.lr,
                };
            }
            // The constructor makes two tensors of state for AdamW.
            (Rule::Adamw { .. }, ..) => {}
        }
        let _ = cleared.zero_();
    }
}

/// A stretch of one parameter in plain memory. All slices have the same length.
struct Job<'a> {
    update: Update,
    weights: &'a mut [f32],
    gradient: &'a mut [f32],
    state: Vec<&'a mut [f32]>,
}

impl Job<'_> {
    fn run(mut self) {
        let u = self.update;
        let (scale, keep) = (u.scale as f32, (1.0 - u.lr * u.decay) as f32);
        let weights = self.weights.iter_mut().zip(self.gradient.iter_mut());
        match (u.rule, &mut self.state[..]) {
            (Rule::Adamw { betas }, [mean, square]) => {
                let (share, stay, add) = ((1.0 - betas[0]) as f32, betas[1] as f32, (1.0 - betas[1]) as f32);
                let (correction, size) = (u.correction as f32, u.size as f32);
                for (((w, g), m), v) in weights.zip(mean.iter_mut()).zip(square.iter_mut()) {
                    let gradient = *g * scale;
                    *m += share * (gradient - *m);
                    *v = stay * *v + add * gradient * gradient;
                    *w = keep * *w - size * (*m / (v.sqrt() / correction + EPS as f32));
                    *g = 0.0;
                }
            }
            (Rule::Sgd { momentum }, [buffer]) => {
                let (decay, lr, momentum) = (u.decay as f32, u.lr as f32, momentum as f32);
                for ((w, g), b) in weights.zip(buffer.iter_mut()) {
                    *b = momentum * *b + (*g * scale + decay * *w);
                    *w -= lr * *b;
                    *g = 0.0;
                }
            }
            (Rule::Sgd { .. }, _) => {
                let (decay, lr) = (u.decay as f32, u.lr as f32);
                for (w, g) in weights {
                    *w -= lr * (*g * scale + decay * *w);
                    *g = 0.0;
                }
            }
            // The constructor makes two tensors of state for AdamW.
            (Rule::Adamw { .. }, _) => {}
        }
    }
}
