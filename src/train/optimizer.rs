//! AdamW and SGD, equal to PyTorch's, with a state that can be saved.
//!
//! tch's own optimizers neither give nor take their state, so a run could not be resumed. On the CPU the update is one
//! pass over plain memory; elsewhere it is tensor operations. Gradients go after it, so that the next forward pass has
//! their memory.

use std::collections::HashMap;

use anyhow::{ensure, Context, Result};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::config::{OptimizerKind, TrainConfig};
use crate::nn::crossings::fetch;
use crate::nn::memory::{f32_slices_mut, is_plain, CHUNK};
use crate::nn::node::forget_gradient;

/// PyTorch's default for Adam's division.
const EPS: f64 = 1e-8;
/// Variables whose learning rate has the factor `train.backbone_lr`.
const BACKBONE: &str = "backbone.body.";
/// The entry of a saved state that holds how often each parameter was updated.
const STEPS: &str = "steps";

/// What gradients of norm `norm` are multiplied with so that it is at most `most` (`torch.nn.utils.clip_grad_norm_`).
pub fn clip_factor(norm: f64, most: f64) -> f64 {
    (most / (norm + 1e-6)).min(1.0)
}

/// An update rule.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019): `torch.optim.AdamW`.
    Adamw { betas: [f64; 2] },
    /// `torch.optim.SGD`, without dampening or Nesterov.
    Sgd { momentum: f64 },
}

impl Rule {
    fn start(self, variable: &Tensor) -> State<Tensor> {
        let zeros = || variable.detach().zeros_like();
        match self {
            Self::Adamw { .. } => State::Adamw { mean: zeros(), square: zeros() },
            Self::Sgd { momentum } if momentum != 0.0 => State::Momentum(zeros()),
            Self::Sgd { .. } => State::Nothing,
        }
    }
}

/// What an update rule remembers of a parameter: tensors, or the same stretch of each.
#[derive(Debug)]
enum State<T> {
    /// AdamW: averages of the gradient and of its square.
    Adamw { mean: T, square: T },
    /// SGD: the momentum buffer.
    Momentum(T),
    /// SGD without momentum.
    Nothing,
}

impl<T> State<T> {
    fn map<'a, U>(&'a self, mut f: impl FnMut(&'a T) -> U) -> State<U> {
        match self {
            Self::Adamw { mean, square } => State::Adamw { mean: f(mean), square: f(square) },
            Self::Momentum(buffer) => State::Momentum(f(buffer)),
            Self::Nothing => State::Nothing,
        }
    }

    fn map_mut<'a, U>(&'a mut self, f: impl Fn(&'a mut T) -> U) -> State<U> {
        match self {
            Self::Adamw { mean, square } => State::Adamw { mean: f(mean), square: f(square) },
            Self::Momentum(buffer) => State::Momentum(f(buffer)),
            Self::Nothing => State::Nothing,
        }
    }

    /// In a fixed order, for saving.
    fn all(&self) -> Vec<&T> {
        match self {
            Self::Adamw { mean, square } => vec![mean, square],
            Self::Momentum(buffer) => vec![buffer],
            Self::Nothing => Vec::new(),
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
    /// Updates so far: 0 until the variable has its first gradient. From then on, no gradient counts as one of zeros.
    steps: u64,
    /// Shaped as the variable.
    state: State<Tensor>,
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
    /// For those of the variables that take gradients, in the order given (sorted by name, so that runs are
    /// repeatable).
    ///
    /// One-dimensional variables are norms and biases: they decay only with `train.decay_norms`. Variables of the
    /// backbone have `train.backbone_lr` as a factor of the learning rate.
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
            state: rule.start(variable),
        };
        let parameters = variables.iter().filter(|(_, v)| v.requires_grad()).map(parameter).collect();
        Self { rule, parameters }
    }

    /// Parameters that train.
    pub fn parameters(&self) -> usize {
        self.parameters.iter().map(|p| p.variable.numel()).sum()
    }

    /// 2-norm of all gradients together; not finite if one of them is not. The same whatever the number of threads.
    pub fn gradient_norm(&self) -> f64 {
        let gradients: Vec<Tensor> =
            self.parameters.iter().map(|p| p.variable.grad()).filter(Tensor::defined).collect();
        let (plain, other): (Vec<&Tensor>, Vec<&Tensor>) = gradients.iter().partition(|g| is_plain(g));
        // SAFETY: nothing is called until the sums are made that could use a gradient.
        let plain = unsafe { f32_slices_mut(&plain) };
        let chunks: Vec<&[f32]> = plain.iter().flat_map(|gradient| gradient.chunks(CHUNK)).collect();
        // Partial sums are added in order.
        let sums: Vec<f64> = chunks.into_par_iter().map(sum_of_squares).collect();
        let mut total: f64 = sums.iter().sum();
        if !other.is_empty() {
            let norms: Vec<Tensor> = other.iter().map(|g| g.norm().to_kind(Kind::Float)).collect();
            // Summed on the CPU: MPS has no float64.
            total += fetch(&Tensor::stack(&norms, 0)).square().sum(Kind::Double).double_value(&[]);
        }
        total.sqrt()
    }

    /// Clears the gradients without an update.
    pub fn clear(&mut self) {
        self.parameters.iter().for_each(|parameter| forget_gradient(&parameter.variable));
    }

    /// Updates every variable with its gradient times `scale`, at learning rate `lr`, and clears the gradients.
    pub fn step(&mut self, lr: f64, scale: f64) {
        tch::no_grad(|| self.update(lr, scale));
        self.clear();
    }

    fn update(&mut self, lr: f64, scale: f64) {
        let rule = self.rule;
        let mut updated = Vec::new();
        for parameter in &mut self.parameters {
            let Some(gradient) = parameter.gradient() else { continue };
            parameter.steps += 1;
            let update = Update::new(rule, lr * parameter.rate, parameter.decay, scale, parameter.steps);
            if is_plain(&parameter.variable) && is_plain(&gradient) {
                updated.push((update, &*parameter, gradient));
            } else {
                update.tensors(&parameter.variable, &gradient, &parameter.state);
            }
        }
        let tensors: Vec<&Tensor> = updated
            .iter()
            .flat_map(|(_, p, gradient)| [&p.variable, gradient].into_iter().chain(p.state.all()))
            .collect();
        // SAFETY: until the jobs are done nothing is called that could use one of these tensors.
        let mut slices = unsafe { f32_slices_mut(&tensors) }.into_iter();
        let mut next = || slices.next().unwrap_or_default();
        let mut jobs = Vec::new();
        for &(update, parameter, _) in &updated {
            let (mut weights, mut gradient) = (next(), next());
            let mut state = parameter.state.map(|_| next());
            while !weights.is_empty() {
                let job = Job {
                    update,
                    weights: first_chunk(&mut weights),
                    gradient: first_chunk(&mut gradient),
                    state: state.map_mut(first_chunk),
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
            for (i, state) in parameter.state.all().into_iter().enumerate() {
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
            state.get(name).with_context(|| format!("it has no optimizer state `{name}`: another model or optimizer?"))
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
            for (i, own) in parameter.state.all().into_iter().enumerate() {
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

/// Takes the next chunk of a slice away from it.
fn first_chunk<'a>(slice: &mut &'a mut [f32]) -> &'a mut [f32] {
    let n = slice.len().min(CHUNK);
    slice.split_off_mut(..n).unwrap_or_default()
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
    betas: [f64; 2],
    momentum: f64,
    /// Factor of the gradient.
    scale: f64,
    /// Weight decay.
    decay: f64,
    /// AdamW: the fraction of a weight that its decay leaves.
    keep: f64,
    /// Learning rate; AdamW: lr / (1 − β₁ᵗ).
    size: f64,
    /// AdamW: √(1 − β₂ᵗ).
    correction: f64,
}

impl Update {
    fn new(rule: Rule, lr: f64, decay: f64, scale: f64, steps: u64) -> Self {
        let plain =
            Self { betas: [0.0; 2], momentum: 0.0, scale, decay, keep: 1.0 - lr * decay, size: lr, correction: 1.0 };
        match rule {
            Rule::Adamw { betas } => {
                let left = |beta: f64| 1.0 - beta.powf(steps as f64);
                Self { betas, size: lr / left(betas[0]), correction: left(betas[1]).sqrt(), ..plain }
            }
            Rule::Sgd { momentum } => Self { momentum, ..plain },
        }
    }

    /// The update as tensor operations, for any device, kind and layout.
    fn tensors(&self, variable: &Tensor, gradient: &Tensor, state: &State<Tensor>) {
        let mut variable = variable.detach();
        let gradient = gradient * self.scale;
        match state.map(Tensor::shallow_clone) {
            State::Adamw { mut mean, mut square } => {
                let _ = variable.g_mul_scalar_(self.keep);
                let _ = mean.lerp_(&gradient, 1.0 - self.betas[0]);
                let _ = square.g_mul_scalar_(self.betas[1]);
                square += gradient.square() * (1.0 - self.betas[1]);
                variable -= mean / (square.sqrt() / self.correction + EPS) * self.size;
            }
            State::Momentum(mut buffer) => {
                let _ = buffer.g_mul_scalar_(self.momentum);
                buffer += gradient + &variable * self.decay;
                variable -= buffer * self.size;
            }
            State::Nothing => variable -= (gradient + &variable * self.decay) * self.size,
        }
    }
}

/// A stretch of one parameter in plain memory. All slices have the same length.
struct Job<'a> {
    update: Update,
    weights: &'a mut [f32],
    gradient: &'a mut [f32],
    state: State<&'a mut [f32]>,
}

impl Job<'_> {
    fn run(self) {
        let u = self.update;
        let (scale, decay, size) = (u.scale as f32, u.decay as f32, u.size as f32);
        let weights = self.weights.iter_mut().zip(self.gradient);
        match self.state {
            State::Adamw { mean, square } => {
                let (rest, add) = ((1.0 - u.betas[0]) as f32, (1.0 - u.betas[1]) as f32);
                let (stay, keep) = (u.betas[1] as f32, u.keep as f32);
                let (correction, eps) = (u.correction as f32, EPS as f32);
                for (((w, g), m), v) in weights.zip(mean).zip(square) {
                    let gradient = *g * scale;
                    *m += rest * (gradient - *m);
                    *v = stay * *v + add * gradient * gradient;
                    *w = keep * *w - size * (*m / (v.sqrt() / correction + eps));
                }
            }
            State::Momentum(buffer) => {
                let momentum = u.momentum as f32;
                for ((w, g), b) in weights.zip(buffer) {
                    *b = momentum * *b + (*g * scale + decay * *w);
                    *w -= size * *b;
                }
            }
            State::Nothing => {
                for (w, g) in weights {
                    *w -= size * (*g * scale + decay * *w);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    const REFERENCE: &str = include_str!("../../tests/fixtures/optim/optim.json");

    fn config(optimizer: OptimizerKind, beta2: f64) -> TrainConfig {
        TrainConfig { optimizer, betas: [0.9, beta2], weight_decay: 0.05, ..TrainConfig::default() }
    }

    fn variables(kind: Kind) -> Vec<(String, Tensor)> {
        let bias = Tensor::from_slice(&[0.25, -0.5]);
        let weight = Tensor::from_slice(&[0.5, -1.25, 2.0, 0.125, 0.0, -0.75]).view([2, 3]);
        let variable = |t: Tensor| t.to_kind(kind).set_requires_grad(true);
        vec![("bias".into(), variable(bias)), ("backbone.body.weight".into(), variable(weight))]
    }

    /// Gives the variables the gradients of make.py: those of Σ variable·g.
    fn backward(variables: &[(String, Tensor)], step: usize, with_bias: bool) {
        let step = step as f64;
        let weight = (0..6).map(|n| (1.0 + 3.0 * step + (n / 3) as f64 * 3.0 + (n % 3) as f64).sin());
        let bias: Vec<f64> = (0..2).map(|i| 2.0 * (step + i as f64).cos()).collect();
        let product = |variable: &Tensor, g: &[f64]| {
            let g = Tensor::from_slice(g).view_as(variable).to_kind(variable.kind());
            (variable * g).sum(Kind::Double)
        };
        let mut sum = product(&variables[1].1, &weight.collect::<Vec<_>>());
        if with_bias {
            sum += product(&variables[0].1, &bias);
        }
        sum.backward();
    }

    fn rate(step: usize) -> f64 {
        0.1 / (1 + step) as f64
    }

    fn values(variables: &[(String, Tensor)]) -> Vec<f64> {
        let flat = |t: &Tensor| Vec::<f64>::try_from(t.detach().to_kind(Kind::Double).reshape(-1)).unwrap();
        [flat(&variables[1].1), flat(&variables[0].1)].concat()
    }

    fn check(name: &str, config: &TrainConfig, clip: Option<f64>, bias_from: usize) {
        let reference: Value = serde_json::from_str(REFERENCE).unwrap();
        let reference = &reference["optimizers"][name];
        for kind in [Kind::Float, Kind::Double] {
            let variables = variables(kind);
            let mut optimizer = Optimizer::new(&variables, config);
            for (step, expected) in reference["weights"].as_array().unwrap().iter().enumerate() {
                backward(&variables, step, step >= bias_from);
                let norm = optimizer.gradient_norm();
                let expected_norm = reference["norms"][step].as_f64().unwrap();
                assert!((norm - expected_norm).abs() < 1e-5, "{name} norm {norm} {expected_norm}");
                optimizer.step(rate(step), clip.map_or(1.0, |most| clip_factor(norm, most)));
                for (value, expected) in values(&variables).iter().zip(expected.as_array().unwrap()) {
                    let expected = expected.as_f64().unwrap();
                    assert!((value - expected).abs() < 1e-6, "{name} step {step} {kind:?}: {value} {expected}");
                }
                assert!(!variables[1].1.grad().defined(), "its memory is not free for the next step");
            }
        }
    }

    #[test]
    fn adamw_is_pytorchs() {
        check("adamw", &config(OptimizerKind::Adamw, 0.99), None, 0);
        check("adamw_clipped", &config(OptimizerKind::Adamw, 0.99), Some(0.5), 0);
    }

    #[test]
    fn biases_may_go_without_decay_and_the_backbone_with_another_rate() {
        let config = TrainConfig { decay_norms: false, backbone_lr: 0.1, ..config(OptimizerKind::Adamw, 0.999) };
        check("adamw_groups", &config, None, 0);
    }

    #[test]
    fn only_large_gradients_are_clipped() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
    }

    #[test]
    fn a_parameter_without_a_gradient_waits() {
        check("adamw_late_bias", &config(OptimizerKind::Adamw, 0.99), None, 2);
    }

    #[test]
    fn sgd_is_pytorchs_with_and_without_momentum() {
        check("sgd_momentum", &config(OptimizerKind::Sgd, 0.99), None, 0);
        let plain = TrainConfig { momentum: 0.0, ..config(OptimizerKind::Sgd, 0.99) };
        check("sgd_plain", &plain, Some(0.5), 0);
    }

    #[test]
    fn frozen_variables_stay() {
        let variables = variables(Kind::Float);
        let _ = variables[0].1.set_requires_grad(false);
        let mut optimizer = Optimizer::new(&variables, &config(OptimizerKind::Adamw, 0.99));
        assert_eq!(optimizer.parameters(), 6);
        backward(&variables, 0, true);
        optimizer.step(0.1, 1.0);
        assert_eq!(values(&variables)[6..], [0.25, -0.5]);
        assert_ne!(values(&variables)[0], 0.5);
    }

    #[test]
    fn a_saved_state_goes_on_to_the_bit() {
        let config = config(OptimizerKind::Adamw, 0.99);
        let whole = variables(Kind::Float);
        let mut optimizer = Optimizer::new(&whole, &config);
        let (mut middle, mut state) = (Vec::new(), HashMap::new());
        for step in 0..6 {
            if step == 3 {
                middle = whole.iter().map(|(n, v)| (n.clone(), v.detach().copy())).collect();
                state = optimizer.state().into_iter().map(|(n, t)| (n, t.copy())).collect();
            }
            // The bias has no gradient in the step after the resume: both runs must treat it alike.
            backward(&whole, step, step != 3);
            optimizer.step(rate(step), 1.0);
        }
        let resumed: Vec<(String, Tensor)> = middle.into_iter().map(|(n, v)| (n, v.set_requires_grad(true))).collect();
        let mut optimizer = Optimizer::new(&resumed, &config);
        optimizer.load_state(&state).unwrap();
        for step in 3..6 {
            backward(&resumed, step, step != 3);
            optimizer.step(rate(step), 1.0);
        }
        assert_eq!(values(&resumed), values(&whole));
        state.remove("0.bias");
        let error = optimizer.load_state(&state).unwrap_err().to_string();
        assert!(error.contains("0.bias"), "{error}");
    }

    #[test]
    fn updates_and_norms_of_large_tensors_do_not_depend_on_threads() {
        let run = || {
            let n = 3 * CHUNK as i64 + 17;
            let start = (Tensor::arange(n, (Kind::Float, tch::Device::Cpu)) * 0.37).sin().set_requires_grad(true);
            let variables = vec![("w".to_string(), start)];
            let mut optimizer = Optimizer::new(&variables, &config(OptimizerKind::Adamw, 0.99));
            variables[0].1.square().sum(Kind::Float).backward();
            let expected = variables[0].1.grad().to_kind(Kind::Double).norm().double_value(&[]);
            let norm = optimizer.gradient_norm();
            assert!((norm / expected - 1.0).abs() < 1e-9, "{norm} {expected}");
            optimizer.step(0.1, 0.5);
            (norm, Vec::<f32>::try_from(variables[0].1.detach()).unwrap())
        };
        let run = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run);
        assert_eq!(run(1), run(3));
    }
}
