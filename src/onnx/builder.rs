//! A graph under construction: nodes and constants, in the order in which they are added.

use std::rc::Rc;

use tch::{Device, Tensor};

use super::messages::attribute_proto::AttributeType;
use super::messages::tensor_proto::DataType;
use super::messages::tensor_shape_proto::Dimension;
use super::messages::type_proto;
use super::messages::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto,
};

/// What a graph is written for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// (height, width) of the images, in pixels; `None`: any multiples of 32.
    pub size: Option<(i64, i64)>,
    /// Images of a batch; `None`: any number.
    pub batch: Option<i64>,
    /// Layers compute in float16, but for what [`Graph::full`] takes out.
    pub half: bool,
    /// Each Grapher takes its neighbours from an input `edges.0`, …, and each block of GreedyViG what they count from
    /// `weights.0`, …; neither looks for any: for tests.
    pub neighbours_as_inputs: bool,
}

/// Kinds of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// float32
    Float,
    /// float16
    Half,
    /// float64
    Double,
    /// int64
    Int64,
    /// uint8
    Uint8,
    /// bool
    Bool,
}

impl Kind {
    /// Its number in the format.
    pub fn data_type(self) -> i32 {
        let data_type = match self {
            Self::Float => DataType::Float,
            Self::Half => DataType::Float16,
            Self::Double => DataType::Double,
            Self::Int64 => DataType::Int64,
            Self::Uint8 => DataType::Uint8,
            Self::Bool => DataType::Bool,
        };
        data_type as i32
    }

    fn of_tensors(self) -> tch::Kind {
        match self {
            Self::Float => tch::Kind::Float,
            Self::Half => tch::Kind::Half,
            Self::Double => tch::Kind::Double,
            Self::Int64 => tch::Kind::Int64,
            Self::Uint8 => tch::Kind::Uint8,
            Self::Bool => tch::Kind::Bool,
        }
    }
}

/// What a node gives, a constant, or an input.
#[derive(Clone, Debug)]
pub struct Value {
    name: Rc<str>,
    kind: Kind,
}

impl Value {
    /// Its kind of elements.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// A size of an input or output.
#[derive(Clone, Copy, Debug)]
pub enum Dim {
    /// Always this.
    Fixed(i64),
    /// Any, under this name.
    Any(&'static str),
}

/// A named value of a node.
#[derive(Clone, Debug)]
pub enum Attribute<'a> {
    /// A whole number.
    Int(i64),
    /// Whole numbers.
    Ints(&'a [i64]),
    /// A number.
    Float(f64),
    /// A word.
    Text(&'a str),
    /// The body of a loop.
    Graph(GraphProto),
}

/// A graph under construction.
#[derive(Debug)]
pub struct Graph {
    options: Options,
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    inputs: Vec<ValueInfoProto>,
    /// What comes before the names of nodes and constants: the part of the model that they are of.
    part: String,
    /// Numbers the names.
    count: usize,
}

impl Graph {
    /// An empty graph.
    pub fn new(options: Options) -> Self {
        let (nodes, constants, inputs) = (Vec::new(), Vec::new(), Vec::new());
        Self { options, nodes, constants, inputs, part: String::new(), count: 0 }
    }

    /// What it is written for.
    pub fn options(&self) -> Options {
        self.options
    }

    /// (height, width) of a map that has a location for each `stride` pixels, begun ones included; `None`: any.
    pub fn map_size(&self, stride: i64) -> Option<(i64, i64)> {
        let locations = |pixels: i64| (pixels + stride - 1) / stride;
        self.options.size.map(|(height, width)| (locations(height), locations(width)))
    }

    /// What follows is of this part of the model.
    pub fn part(&mut self, name: impl Into<String>) {
        self.part = name.into();
    }

    /// An input.
    pub fn input(&mut self, name: &str, kind: Kind, dims: &[Dim]) -> Value {
        self.inputs.push(value_info(name, kind, Some(dims)));
        Value { name: name.into(), kind }
    }

    /// An input that need not be given: then it is `otherwise`.
    pub fn optional_input(&mut self, name: &str, otherwise: &Tensor, kind: Kind, dims: &[Dim]) -> Value {
        self.constants.push(tensor_proto(name, otherwise, kind));
        self.input(name, kind, dims)
    }

    /// A constant.
    pub fn constant(&mut self, tensor: &Tensor, kind: Kind) -> Value {
        let name = self.new_name("constant");
        self.constants.push(tensor_proto(&name, tensor, kind));
        Value { name: name.into(), kind }
    }

    /// Adds a node with an output of each of these kinds.
    pub fn node(
        &mut self,
        op: &str,
        inputs: &[&Value],
        attributes: &[(&str, Attribute)],
        kinds: &[Kind],
    ) -> Vec<Value> {
        let name = self.new_name(op);
        let output = |i: usize| if i == 0 { name.clone() } else { format!("{name}.{i}") };
        let outputs: Vec<Value> =
            kinds.iter().enumerate().map(|(i, &kind)| Value { name: output(i).into(), kind }).collect();
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|value| value.name.to_string()).collect(),
            output: outputs.iter().map(|value| value.name.to_string()).collect(),
            name: Some(name),
            op_type: Some(op.into()),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
        });
        outputs
    }

    /// Adds a node with one output of this kind.
    pub fn node_as(&mut self, kind: Kind, op: &str, inputs: &[&Value], attributes: &[(&str, Attribute)]) -> Value {
        self.node(op, inputs, attributes, &[kind]).remove(0)
    }

    /// Adds a node with one output, of its first input's kind.
    pub fn op(&mut self, op: &str, inputs: &[&Value], attributes: &[(&str, Attribute)]) -> Value {
        self.node_as(inputs[0].kind, op, inputs, attributes)
    }

    /// An absent input of a node.
    pub fn nothing() -> Value {
        Value { name: "".into(), kind: Kind::Float }
    }

    /// A body of a loop whose inputs have these kinds. It may use what is outside of it.
    pub fn body(&mut self, kinds: &[Kind], fill: impl FnOnce(&mut Self, &[Value]) -> Vec<Value>) -> GraphProto {
        let outside = std::mem::take(&mut self.nodes);
        let inputs: Vec<Value> =
            kinds.iter().map(|&kind| Value { name: self.new_name("slice").into(), kind }).collect();
        // What leaves a body must be a node's of its own.
        let outputs: Vec<Value> = fill(self, &inputs).iter().map(|value| self.op("Identity", &[value], &[])).collect();
        let name = self.new_name("body");
        let info = |value: &Value| value_info(&value.name, value.kind, None);
        GraphProto {
            node: std::mem::replace(&mut self.nodes, outside),
            name: Some(name),
            initializer: Vec::new(),
            input: inputs.iter().map(info).collect(),
            output: outputs.iter().map(info).collect(),
        }
    }

    /// The graph, whose outputs have these names and sizes.
    pub fn finish(mut self, name: &str, outputs: &[(&str, &Value, Vec<Dim>)]) -> GraphProto {
        for (name, value, _) in outputs {
            self.nodes.push(NodeProto {
                input: vec![value.name.to_string()],
                output: vec![name.to_string()],
                name: Some(format!("output/{name}")),
                op_type: Some("Identity".into()),
                attribute: Vec::new(),
            });
        }
        GraphProto {
            node: self.nodes,
            name: Some(name.into()),
            initializer: self.constants,
            input: self.inputs,
            output: outputs.iter().map(|(name, value, dims)| value_info(name, value.kind, Some(dims))).collect(),
        }
    }

    fn new_name(&mut self, what: &str) -> String {
        self.count += 1;
        format!("{}/{what}_{}", self.part, self.count)
    }
}

fn value_info(name: &str, kind: Kind, dims: Option<&[Dim]>) -> ValueInfoProto {
    let dim = |dim: &Dim| match dim {
        Dim::Fixed(size) => Dimension { dim_value: Some(*size), dim_param: None },
        Dim::Any(name) => Dimension { dim_value: None, dim_param: Some(name.to_string()) },
    };
    let shape = dims.map(|dims| TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: Some(kind.data_type()), shape };
    ValueInfoProto { name: Some(name.into()), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

fn tensor_proto(name: &str, tensor: &Tensor, kind: Kind) -> TensorProto {
    let tensor = tensor.detach().to_device(Device::Cpu).to_kind(kind.of_tensors()).contiguous();
    let mut raw = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut raw, tensor.numel());
    TensorProto {
        dims: tensor.size(),
        data_type: Some(kind.data_type()),
        name: Some(name.into()),
        raw_data: Some(raw),
        external_data: Vec::new(),
        data_location: None,
    }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let empty = AttributeProto { name: Some(name.into()), ..Default::default() };
    let of = |kind: AttributeType| AttributeProto { r#type: Some(kind as i32), ..empty };
    match value {
        Attribute::Int(i) => AttributeProto { i: Some(*i), ..of(AttributeType::Int) },
        Attribute::Ints(ints) => AttributeProto { ints: ints.to_vec(), ..of(AttributeType::Ints) },
        Attribute::Float(f) => AttributeProto { f: Some(*f as f32), ..of(AttributeType::Float) },
        Attribute::Text(s) => AttributeProto { s: Some(s.as_bytes().to_vec()), ..of(AttributeType::String) },
        Attribute::Graph(g) => AttributeProto { g: Some(g.clone()), ..of(AttributeType::Graph) },
    }
}
