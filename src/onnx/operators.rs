//! Operators on values: arithmetic, shapes, indices.

use tch::Tensor;

use super::builder::{Attribute, Graph, Kind, Value};
use super::messages::GraphProto;

use Attribute::{Int, Ints, Text};

impl Graph {
    /// A number of a value's kind.
    pub fn scalar_like(&mut self, number: f64, like: &Value) -> Value {
        self.constant(&Tensor::from(number), like.kind())
    }

    /// int64, a single number.
    pub fn int(&mut self, number: i64) -> Value {
        self.constant(&Tensor::from(number), Kind::Int64)
    }

    /// int64 `[n]`.
    pub fn ints(&mut self, numbers: &[i64]) -> Value {
        self.constant(&Tensor::from_slice(numbers), Kind::Int64)
    }

    /// float32 of this shape.
    pub fn floats(&mut self, numbers: &[f32], shape: &[i64]) -> Value {
        self.constant(&Tensor::from_slice(numbers).view(shape), Kind::Float)
    }

    /// An operator of one input without attributes, such as `Relu`.
    pub fn unary(&mut self, op: &str, x: &Value) -> Value {
        self.op(op, &[x], &[])
    }

    /// `a + b`.
    pub fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Add", &[a, b], &[])
    }

    /// `a − b`.
    pub fn sub(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Sub", &[a, b], &[])
    }

    /// `a · b`.
    pub fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Mul", &[a, b], &[])
    }

    /// `a / b`; of whole numbers that are not negative, rounded down.
    pub fn div(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Div", &[a, b], &[])
    }

    /// `x + number`.
    pub fn plus(&mut self, x: &Value, number: f64) -> Value {
        let number = self.scalar_like(number, x);
        self.add(x, &number)
    }

    /// `x · number`.
    pub fn times(&mut self, x: &Value, number: f64) -> Value {
        let number = self.scalar_like(number, x);
        self.mul(x, &number)
    }

    /// `x / number`.
    pub fn over(&mut self, x: &Value, number: f64) -> Value {
        let number = self.scalar_like(number, x);
        self.div(x, &number)
    }

    /// The smaller of each pair.
    pub fn min(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Min", &[a, b], &[])
    }

    /// The larger of each pair.
    pub fn max(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Max", &[a, b], &[])
    }

    /// `x`, but at least `least`.
    pub fn at_least(&mut self, x: &Value, least: f64) -> Value {
        let least = self.scalar_like(least, x);
        self.max(x, &least)
    }

    /// `x`, but at most `most`.
    pub fn at_most(&mut self, x: &Value, most: f64) -> Value {
        let most = self.scalar_like(most, x);
        self.min(x, &most)
    }

    /// Matrix product.
    pub fn matmul(&mut self, a: &Value, b: &Value) -> Value {
        self.op("MatMul", &[a, b], &[])
    }

    /// Whether `Greater`, `GreaterOrEqual`, `Less`, `Equal`, `And`, … holds.
    pub fn is(&mut self, op: &str, a: &Value, b: &Value) -> Value {
        self.node_as(Kind::Bool, op, &[a, b], &[])
    }

    /// As [`Graph::is`], for a number.
    pub fn is_number(&mut self, op: &str, x: &Value, number: f64) -> Value {
        let number = self.scalar_like(number, x);
        self.is(op, x, &number)
    }

    /// `yes` where the condition holds, `no` elsewhere.
    pub fn choose(&mut self, condition: &Value, yes: &Value, no: &Value) -> Value {
        self.node_as(yes.kind(), "Where", &[condition, yes, no], &[])
    }

    /// `x` where the condition holds, a number elsewhere.
    pub fn or_number(&mut self, condition: &Value, x: &Value, number: f64) -> Value {
        let number = self.scalar_like(number, x);
        self.choose(condition, x, &number)
    }

    /// Another kind of elements.
    pub fn cast(&mut self, x: &Value, kind: Kind) -> Value {
        if x.kind() == kind {
            return x.clone();
        }
        self.node_as(kind, "Cast", &[x], &[("to", Int(kind.data_type().into()))])
    }

    /// float32, whatever the layers compute in.
    pub fn full(&mut self, x: &Value) -> Value {
        self.cast(x, Kind::Float)
    }

    /// What the layers compute in.
    pub fn working(&mut self, x: &Value) -> Value {
        let kind = if self.options().half { Kind::Half } else { Kind::Float };
        self.cast(x, kind)
    }

    /// Sizes of these dimensions, int64 `[to − from]`.
    pub fn shape(&mut self, x: &Value, from: i64, to: i64) -> Value {
        self.node_as(Kind::Int64, "Shape", &[x], &[("start", Int(from)), ("end", Int(to))])
    }

    /// Other dimensions, known ones: 0 takes that of `x`, −1 the rest.
    pub fn reshape(&mut self, x: &Value, shape: &[i64]) -> Value {
        let shape = self.ints(shape);
        self.op("Reshape", &[x, &shape], &[])
    }

    /// Other dimensions, parts of which are computed, each int64 `[n]`.
    pub fn reshape_to(&mut self, x: &Value, shape: &[&Value]) -> Value {
        let shape = self.concat(shape, 0);
        self.op("Reshape", &[x, &shape], &[])
    }

    /// Dimensions in another order.
    pub fn transpose(&mut self, x: &Value, order: &[i64]) -> Value {
        self.op("Transpose", &[x], &[("perm", Ints(order))])
    }

    /// Values one after another.
    pub fn concat(&mut self, values: &[&Value], axis: i64) -> Value {
        match values {
            [value] => (*value).clone(),
            _ => self.op("Concat", values, &[("axis", Int(axis))]),
        }
    }

    /// New dimensions of size 1.
    pub fn unsqueeze(&mut self, x: &Value, axes: &[i64]) -> Value {
        let axes = self.ints(axes);
        self.op("Unsqueeze", &[x, &axes], &[])
    }

    /// Without these dimensions of size 1.
    pub fn squeeze(&mut self, x: &Value, axes: &[i64]) -> Value {
        let axes = self.ints(axes);
        self.op("Squeeze", &[x, &axes], &[])
    }

    /// From `from` to below `to` on an axis; negative ones count from the end.
    pub fn slice(&mut self, x: &Value, axis: i64, from: i64, to: i64) -> Value {
        let (from, to, axis) = (self.ints(&[from]), self.ints(&[to]), self.ints(&[axis]));
        self.op("Slice", &[x, &from, &to, &axis], &[])
    }

    /// The first ones on an axis, `count` int64 `[1]`; every `step`-th.
    pub fn first(&mut self, x: &Value, axis: i64, count: &Value, step: Option<&Value>) -> Value {
        let (from, axis) = (self.ints(&[0]), self.ints(&[axis]));
        let inputs = [x, &from, count, &axis];
        match step {
            Some(step) => self.op("Slice", &[&inputs[..], &[step]].concat(), &[]),
            None => self.op("Slice", &inputs, &[]),
        }
    }

    /// Number `index` on an axis, which goes away.
    pub fn select(&mut self, x: &Value, axis: i64, index: i64) -> Value {
        let index = self.int(index);
        self.gather(x, &index, axis)
    }

    /// Those of these indices on an axis.
    pub fn gather(&mut self, x: &Value, index: &Value, axis: i64) -> Value {
        self.op("Gather", &[x, index], &[("axis", Int(axis))])
    }

    /// Rows of each image: `[N, M, …]` at `[N, k]`, to `[N, k, …]`.
    pub fn rows_at(&mut self, x: &Value, index: &Value) -> Value {
        let index = self.unsqueeze(index, &[-1]);
        self.op("GatherND", &[x, &index], &[("batch_dims", Int(1))])
    }

    /// 0 to below `count`, int64; `count` is int64 `[1]`.
    pub fn range(&mut self, count: &Value) -> Value {
        let (zero, count, one) = (self.int(0), self.squeeze(count, &[0]), self.int(1));
        self.op("Range", &[&zero, &count, &one], &[])
    }

    /// A number at each place of a shape, int64 `[n]`.
    pub fn full_of(&mut self, number: f64, kind: Kind, shape: &Value) -> Value {
        let number = self.constant(&Tensor::from(number), kind);
        self.op("Expand", &[&number, shape], &[])
    }

    /// `ReduceMax`, `ReduceSum`, … over these axes.
    pub fn reduce(&mut self, op: &str, x: &Value, axes: &[i64], keep: bool) -> Value {
        let axes = self.ints(axes);
        self.op(op, &[x, &axes], &[("keepdims", Int(keep.into()))])
    }

    /// The `k` largest on the last axis, largest first, and their indices; of equal ones the first. `k` is int64 `[1]`.
    pub fn top_k(&mut self, x: &Value, k: &Value) -> (Value, Value) {
        let mut found = self.node("TopK", &[x, k], &[("axis", Int(-1))], &[x.kind(), Kind::Int64]);
        let index = found.remove(1);
        (found.remove(0), index)
    }

    /// More of each dimension: `pads`, int64 `[2 · dimensions]`, how many before, then how many after; all `number`.
    pub fn pad(&mut self, x: &Value, pads: &Value, number: f64) -> Value {
        let number = self.scalar_like(number, x);
        self.op("Pad", &[x, pads, &number], &[])
    }

    /// Zeros `shape` with `rows` at `index`, int64 `[n, dimensions that it names]`.
    pub fn scatter(&mut self, shape: &Value, index: &Value, rows: &Value) -> Value {
        let zeros = self.full_of(0.0, rows.kind(), shape);
        self.op("ScatterND", &[&zeros, index, rows], &[])
    }

    /// Maps resized to `size`, int64 `[2]`.
    pub fn resize(&mut self, x: &Value, size: &Value, how: Resize) -> Value {
        let nothing = Self::nothing();
        let mut attributes = vec![("axes", Ints(&[2, 3]))];
        attributes.extend(match how {
            Resize::Nearest => vec![
                ("mode", Text("nearest")),
                ("coordinate_transformation_mode", Text("asymmetric")),
                ("nearest_mode", Text("floor")),
            ],
            Resize::Linear => vec![("mode", Text("linear"))],
            Resize::Cubic => vec![("mode", Text("cubic"))],
        });
        self.op("Resize", &[x, &nothing, &nothing, size], &attributes)
    }

    /// Runs a body on slices of `x` along axis 1 and puts together what it gives along the same axis.
    pub fn scan(&mut self, x: &Value, body: GraphProto, kinds: &[Kind]) -> Vec<Value> {
        let axes = vec![1; kinds.len()];
        let attributes = [
            ("body", Attribute::Graph(body)),
            ("num_scan_inputs", Int(1)),
            ("scan_input_axes", Ints(&[1])),
            ("scan_output_axes", Ints(&axes)),
        ];
        self.node("Scan", &[x], &attributes, kinds)
    }

    /// Takes a step with a state and each part of `x` along axis 0, one after another: the last state.
    pub fn fold(&mut self, state: &Value, x: &Value, step: impl FnOnce(&mut Self, &Value, &Value) -> Value) -> Value {
        let kinds = [state.kind(), x.kind()];
        let body = self.body(&kinds, |graph, inputs| vec![step(graph, &inputs[0], &inputs[1])]);
        let attributes = [("body", Attribute::Graph(body)), ("num_scan_inputs", Int(1))];
        self.op("Scan", &[state, x], &attributes)
    }
}

/// How maps are resized; PyTorch's ways, not aligned at the corners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// The value at the location above and to the left.
    Nearest,
    /// Between two locations a side.
    Linear,
    /// Between four locations a side, with a = −0.75.
    Cubic,
}
