//! `plot_graph`: what is drawn, in pictures, pages and numbers, is what `extract_features --edges` writes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::prelude::{Engine, BASE64_STANDARD};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tch::{nn, Device, Tensor};
use vigdet::backbone::Classifier;
use vigdet::classes::Classes;
use vigdet::config::{ClassifyConfig, Config, Experiment, ShapesConfig};
use vigdet::data::decode;
use vigdet::data::shapes::{self, Scene};
use vigdet::detect;
use vigdet::explore::{Center, GraphViewer, ViewerOptions};
use vigdet::plot::graph::{Centers, GraphPicture, PictureOptions};
use vigdet::weights::{metadata_of, save};

#[allow(dead_code)]
#[path = "../examples/plot_graph.rs"]
mod plot_graph;

/// A small Pyramid ViG: the same parts, fewer of them.
const SMALL: [&str; 4] = ["--set", "model.backbone.channels=[8,16,24,32]", "--set", "model.backbone.blocks=[1,1,2,1]"];
/// Stride, and nodes pooled along each side, of its blocks.
const GRIDS: [(u32, u32); 5] = [(4, 4), (8, 2), (16, 1), (16, 1), (32, 1)];

fn run(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap()
}

fn works(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {error}");
    String::from_utf8(output.stdout).unwrap() + &error
}

const PLOT_GRAPH: &str = env!("CARGO_BIN_EXE_plot_graph");
const EXTRACT_FEATURES: &str = env!("CARGO_BIN_EXE_extract_features");

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An image of shapes, cut to this size.
fn draw_image(folder: &Path, width: u32, height: u32) -> PathBuf {
    let scene = Scene::draw((width.max(height) * 2).max(128), &mut ChaCha8Rng::seed_from_u64(5));
    let image = image::imageops::resize(&scene.image, width, height, image::imageops::FilterType::Triangle);
    let path = folder.join("shapes.png");
    image.save(&path).unwrap();
    path
}

/// `edges.0`, … of a file.
fn edges(path: &Path) -> Vec<Tensor> {
    let tensors: BTreeMap<String, Tensor> = Tensor::read_safetensors(path).unwrap().into_iter().collect();
    (0..).map_while(|i| tensors.get(&format!("edges.{i}")).map(Tensor::shallow_clone)).collect()
}

fn numbers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect()
}

/// Checks the data of a picture against edges, and the places of its patches by the definition of the grids.
fn check_links(data: &Value, edges: &[Tensor], (width, height): (u32, u32)) {
    let blocks = data["blocks"].as_array().unwrap();
    assert_eq!((blocks.len(), edges.len()), (GRIDS.len(), GRIDS.len()));
    for (i, (block, edges)) in blocks.iter().zip(edges).enumerate() {
        let (stride, pooled) = GRIDS[i];
        let columns = width.div_ceil(stride);
        let candidates = (columns / pooled).max(1);
        assert_eq!(block["block"], i + 1);
        let centers = block["centers"].as_array().unwrap();
        assert_eq!(centers.len(), data["centers"].as_array().unwrap().len());
        for center in centers {
            let node = center["node"].as_i64().unwrap();
            let expected = Vec::<i64>::try_from(edges.get(0).get(node)).unwrap();
            assert_eq!(numbers(&center["neighbours"]), expected, "block {} node {node}", i + 1);
            let place = |index: i64, columns: u32, side: u32| {
                let (x, y) = (index as u32 % columns * side, index as u32 / columns * side);
                [x, y, side.min(width - x), side.min(height - y)].map(i64::from).to_vec()
            };
            assert_eq!(numbers(&center["patch"]), place(node, columns, stride));
            for (patch, candidate) in center["patches"].as_array().unwrap().iter().zip(expected) {
                assert_eq!(numbers(patch), place(candidate, candidates, stride * pooled));
            }
            let distances = center["distances"].as_array().unwrap();
            let far: Vec<f64> = distances.iter().map(|d| d.as_f64().unwrap()).collect();
            assert!(far.windows(2).all(|pair| pair[0] <= pair[1] + 1e-5), "nearest first: {far:?}");
        }
    }
}

#[test]
fn the_picture_and_the_page_show_the_edges_that_extract_features_writes() {
    let folder = tempfile::tempdir().unwrap();
    // No multiple of anything: patches at the edges are cut, and pooling leaves some out.
    let image = draw_image(folder.path(), 150, 118);
    let at = |name: &str| folder.path().join(name);
    let (features, weights, json, html) = (at("f.safetensors"), at("w.safetensors"), at("g.json"), at("g.html"));
    let mut args =
        vec!["pvig_ti", "--input", text(&image), "--out", text(&features), "--edges", "--save", text(&weights)];
    args.extend(SMALL);
    works(EXTRACT_FEATURES, &args);
    let out = at("out");
    let mut args = vec!["pvig_ti", "--weights", text(&weights), "--image", text(&image), "--out", text(&out)];
    args.extend(["--blocks", "all", "--center", "149,117", "--center", "70.5,33", "--cell", "9,2", "--edges"]);
    args.extend(["--json", text(&json), "--html", text(&html)]);
    args.extend(SMALL);
    args.push("--time");
    let said = works(PLOT_GRAPH, &args);
    assert!(said.contains("; forward ") && said.contains(" s, picture "), "{said}");
    let edges = edges(&features);
    let data: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert!(data["seconds"]["forward"].is_number(), "{}", data["seconds"]);
    check_links(&data, &edges, (150, 118));
    // 38 columns of 4 pixels: the last patch of 30 rows, row 8 column 17, row 9 column 2.
    let nodes: Vec<&Value> = data["blocks"][0]["centers"].as_array().unwrap().iter().map(|c| &c["node"]).collect();
    assert_eq!(nodes, [29 * 38 + 37, 8 * 38 + 17, 9 * 38 + 2]);
    for name in ["shapes_graph.png", "shapes_graph.svg"] {
        assert!(out.join(name).is_file(), "{name}");
    }

    // The page's arrays are all edges of all blocks.
    let page = std::fs::read_to_string(&html).unwrap();
    let start = page.find("type=\"application/json\">").unwrap() + "type=\"application/json\">".len();
    let data: Value = serde_json::from_str(&page[start..start + page[start..].find("</script>").unwrap()]).unwrap();
    let blocks = data["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), edges.len());
    for (i, (block, edges)) in blocks.iter().zip(&edges).enumerate() {
        let bytes = |name: &str| BASE64_STANDARD.decode(block[name].as_str().unwrap()).unwrap();
        assert_eq!(block["width"], 16);
        let found: Vec<i64> =
            bytes("edges").chunks_exact(2).map(|b| i64::from(u16::from_le_bytes([b[0], b[1]]))).collect();
        assert_eq!(found, Vec::<i64>::try_from(edges.flatten(0, -1)).unwrap(), "block {}", i + 1);
        let distances = bytes("distances");
        assert_eq!(distances.len(), found.len());
        assert!(distances.contains(&0) && distances.contains(&255));
        let k = block["k"].as_u64().unwrap() as usize;
        assert!(distances.chunks_exact(k).all(|d| d.windows(2).all(|pair| pair[0] <= pair[1].saturating_add(1))));
        let pooled = [u64::from(GRIDS[i].1); 2];
        assert_eq!((block["stride"].as_u64(), &block["pooled"]), (Some(GRIDS[i].0.into()), &serde_json::json!(pooled)));
    }
    // It loads nothing: no address but data within it.
    assert!(
        !page.contains("http://") && !page.contains("https://") && !page.contains("src="),
        "the page refers to something"
    );
    assert!(page.contains("default-src 'none'") && page.contains("<title>pvig_ti on shapes.png</title>"));
}

#[test]
fn a_detectors_checkpoint_shows_the_graph_of_its_backbone_as_it_sees_the_image() {
    let folder = tempfile::tempdir().unwrap();
    let image = draw_image(folder.path(), 96, 64);
    let at = |name: &str| folder.path().join(name);
    let (features, weights, json) = (at("f.safetensors"), at("d.safetensors"), at("g.json"));
    let changes: Vec<String> = SMALL
        .iter()
        .filter(|a| **a != "--set")
        .map(|a| a.to_string())
        .chain(["data.size=[32,48]".into(), "data.test_size=[64,96]".into()])
        .collect();
    let config = Config::preset("retinanet_pvig_ti_shapes", &changes).unwrap();
    let store = nn::VarStore::new(Device::Cpu);
    let _detector = detect::build(&store.root(), &config.model, 1).unwrap();
    save(&store, &weights, &metadata_of(&config, &Classes::from_iter([(1, "star")])).unwrap()).unwrap();
    let input = ["--input", text(&image), "--out", text(&features), "--edges"];
    works(EXTRACT_FEATURES, &[&["pvig_ti", "--weights", text(&weights)][..], &input].concat());
    let plot = |model: &str, more: &[&str]| {
        let args = ["--weights", text(&weights), "--image", text(&image), "--out", text(folder.path())];
        works(PLOT_GRAPH, &[&[model], &args[..], &["--blocks", "all", "--json", text(&json)], more].concat());
        serde_json::from_slice::<Value>(&std::fs::read(&json).unwrap()).unwrap()
    };
    for model in ["retinanet", "pvig_ti"] {
        let data = plot(model, &[]);
        check_links(&data, &edges(&features), (96, 64));
        assert_eq!(data["weights"], "weights d.safetensors");
        assert_eq!(data["centers"].as_array().unwrap().len(), 3);
    }
    // Resized as its config would, and padded to a multiple of 32.
    let data = plot("retinanet", &["--size", "50,60"]);
    assert_eq!((&data["seen"], &data["input"]), (&serde_json::json!([40, 60]), &serde_json::json!([64, 64])));
}

#[test]
fn a_classifier_that_train_cls_saved_is_drawn_with_its_own_mean_and_deviation() {
    let folder = tempfile::tempdir().unwrap();
    let image = draw_image(folder.path(), 96, 64);
    let at = |name: &str| folder.path().join(name);
    let (features, weights, named) = (at("f.safetensors"), at("c.safetensors"), at("named.json"));
    let mut changes: Vec<String> = SMALL.iter().filter(|a| **a != "--set").map(|a| a.to_string()).collect();
    changes.extend(["data.mean=[0.1,0.4,0.7]".into(), "data.std=[0.2,0.3,0.9]".into()]);
    let config = ClassifyConfig::of_model("pvig_ti", &changes).unwrap();
    let store = nn::VarStore::new(Device::Cpu);
    let _classifier = Classifier::new(&store.root(), &config.model.backbone, 2).unwrap();
    let classes = ["cat", "dog"].map(String::from);
    save(&store, &weights, &metadata_of(&config, &Classes::numbered(&classes)).unwrap()).unwrap();
    std::fs::write(&named, config.to_json().unwrap()).unwrap();

    let input = ["--input", text(&image), "--out", text(&features), "--edges"];
    works(EXTRACT_FEATURES, &[&["pvig_ti", "--weights", text(&weights)][..], &input].concat());
    let plot = |more: &[&str]| {
        let json = at("g.json");
        let args = ["pvig_ti", "--weights", text(&weights), "--image", text(&image), "--blocks", "all"];
        works(PLOT_GRAPH, &[&args[..], &["--out", text(folder.path()), "--json", text(&json)], more].concat());
        serde_json::from_slice::<Value>(&std::fs::read(&json).unwrap()).unwrap()["blocks"].clone()
    };
    let own = plot(&[]);
    check_links(&serde_json::json!({ "blocks": own, "centers": [0, 0, 0] }), &edges(&features), (96, 64));
    assert_eq!(plot(&["--config", text(&named)]), own);
    assert_ne!(plot(&["--set", "data.mean=[0.5,0.5,0.5]"]), own);
    // Without a config of its own, a ViG is prepared as the published ones.
    let viewer = GraphViewer::open("pvig_ti", &ViewerOptions::default()).unwrap();
    assert_eq!((viewer.config().data.mean, viewer.config().data.std), ([0.5; 3], [0.5; 3]));
}

/// The links of GreedyViG and AdaptViG that count, strongest first, in a picture's data and in a page.
#[test]
fn axial_graphs_show_the_links_that_passed_and_their_strength() {
    let folder = tempfile::tempdir().unwrap();
    let image = draw_image(folder.path(), 150, 118);
    let at = |name: &str| folder.path().join(name);
    let small = ["--set", "model.backbone.channels=[8,16,24,32]", "--set", "model.backbone.blocks=[1,1,1,1]"];
    for model in ["greedyvig_s", "adaptvig_s"] {
        let (features, weights, json, html) = (at("f.safetensors"), at("w.safetensors"), at("g.json"), at("g.html"));
        let args = [model, "--input", text(&image), "--out", text(&features), "--edges", "--save", text(&weights)];
        works(EXTRACT_FEATURES, &[&args[..], &small].concat());
        let args = [model, "--weights", text(&weights), "--image", text(&image), "--out", text(folder.path())];
        let files = ["--json", text(&json), "--html", text(&html), "--blocks", "all", "--cell", "9,2"];
        works(PLOT_GRAPH, &[&args[..], &files, &["--cell", "3,30"], &small].concat());
        let all: BTreeMap<String, Tensor> = Tensor::read_safetensors(&features).unwrap().into_iter().collect();
        let data: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        let page = std::fs::read_to_string(&html).unwrap();
        let start = page.find("type=\"application/json\">").unwrap() + "type=\"application/json\">".len();
        let page: Value = serde_json::from_str(&page[start..start + page[start..].find("</script>").unwrap()]).unwrap();
        let (mut fewer, mut drawn) = (false, 0);
        for (i, block) in data["blocks"].as_array().unwrap().iter().enumerate() {
            let of = |name: &str| all[&format!("{name}.{i}")].get(0);
            let k = block["k"].as_u64().unwrap() as usize;
            let own = &page["blocks"][i];
            let bytes = BASE64_STANDARD.decode(own["edges"].as_str().unwrap()).unwrap();
            let on_page: Vec<i64> =
                bytes.chunks_exact(2).map(|b| i64::from(u16::from_le_bytes([b[0], b[1]]))).collect();
            for center in block["centers"].as_array().unwrap() {
                let node = center["node"].as_i64().unwrap();
                let edges = Vec::<i64>::try_from(of("edges").get(node)).unwrap();
                let strengths = Vec::<f32>::try_from(of("weights").get(node)).unwrap();
                let mut expected: Vec<(i64, f32)> =
                    edges.into_iter().zip(strengths).filter(|(_, strength)| *strength >= 0.01).collect();
                let found = numbers(&center["neighbours"]);
                let strength = |j: usize| match &center["strengths"] {
                    Value::Null => 1.0,
                    all => all[j].as_f64().unwrap() as f32,
                };
                let mut shown: Vec<(i64, f32)> = found.iter().enumerate().map(|(j, &n)| (n, strength(j))).collect();
                assert!(shown.windows(2).all(|pair| pair[0].1 >= pair[1].1), "{model} block {i}: {shown:?}");
                fewer |= shown.len() < k;
                drawn += shown.len();
                assert!(expected.len() <= 16, "none is left out");
                let row = &on_page[node as usize * k..][..k];
                assert_eq!(row[..found.len()], found, "{model} block {i}");
                assert!(row[found.len()..].iter().all(|none| *none == 0xffff));
                let order = |links: &mut Vec<(i64, f32)>| links.sort_by(|a, b| a.partial_cmp(b).unwrap());
                order(&mut expected);
                order(&mut shown);
                assert_eq!(shown, expected, "{model} block {i} node {node}");
            }
            let weighed = !block["centers"][0]["strengths"].is_null();
            assert_eq!(own["measure"], if weighed { "strength" } else { "distance" }, "{model} block {i}");
            // A mask has no strengths, attention has.
            assert!(if model == "greedyvig_s" { !weighed } else { weighed || i < 3 }, "{model} block {i}");
        }
        assert!(drawn > 0 && (fewer || model != "greedyvig_s"), "{model}");
    }
}

/// The values of attributes of all elements of a kind in an SVG.
fn elements<'a>(svg: &'a str, kind: &str, names: &[&str]) -> Vec<Vec<&'a str>> {
    let start = format!("<{kind} ");
    let attribute = |element: &'a str, name: &str| {
        let from = element.find(&format!(" {name}=\"")).map(|at| at + name.len() + 3)?;
        Some(&element[from..from + element[from..].find('"')?])
    };
    svg.match_indices(&start)
        .map(|(at, _)| &svg[at..at + svg[at..].find('>').unwrap()])
        .filter_map(|element| names.iter().map(|name| attribute(element, name)).collect())
        .collect()
}

#[test]
fn the_svg_has_neighbours_in_the_centres_colour_at_their_true_place_and_size() {
    let folder = tempfile::tempdir().unwrap();
    let image = decode::open(&draw_image(folder.path(), 128, 96), false).unwrap();
    let changes = SMALL.iter().filter(|a| **a != "--set").map(|a| a.to_string()).collect();
    let viewer = GraphViewer::open("pvig_ti", &ViewerOptions { changes, ..ViewerOptions::default() }).unwrap();
    assert!(viewer.report().contains("random"));
    let view = viewer.view(&image, "a <b> & c").unwrap();
    let centers = Centers::Given(vec![Center::Pixel { x: 60.0, y: 40.0 }]);
    let draw = |edges| GraphPicture::new(&view, &[0, 4], &centers, PictureOptions { edges }).unwrap();
    let picture = draw(false);
    let svg = picture.svg().unwrap();
    let number = |text: &str| text.parse::<f64>().unwrap();
    let width = number(elements(&svg, "image", &["width"])[0][0]);
    let scale = width / 128.0;
    let panels: Vec<(f64, f64)> =
        elements(&svg, "use", &["x", "y"]).iter().map(|v| (number(v[0]), number(v[1]))).collect();
    assert_eq!(panels.len(), 2);
    // Vermilion; one more beside the legend's words.
    let found: BTreeSet<[i64; 4]> = elements(&svg, "rect", &["x", "y", "width", "height", "fill"])
        .iter()
        .filter(|v| v[4] == "#D55E00")
        .map(|v| [0, 1, 2, 3].map(|i| v[i].parse().unwrap()))
        .collect();
    let mut expected = BTreeSet::new();
    for (block, (left, top)) in picture.links().blocks.iter().zip(&panels) {
        assert_eq!(block.centers[0].patches.len(), block.k);
        for [x, y, w, h] in &block.centers[0].patches {
            let at = |corner: f64, v: u32| (corner + (f64::from(v) * scale).round()) as i64;
            let (x1, y1, x2, y2) = (at(*left, *x), at(*top, *y), at(*left, x + w), at(*top, y + h));
            // A pixel inside of the grid's lines on all sides.
            expected.insert([x1 + 1, y1 + 1, x2 - x1 - 2, y2 - y1 - 2]);
        }
    }
    assert!(expected.is_subset(&found), "{expected:?} {found:?}");
    assert_eq!(found.len(), expected.len() + 1);
    // A pentagram in each panel and in the legend.
    let stars = elements(&svg, "polygon", &["fill", "points"]);
    let stars: Vec<&str> = stars.iter().filter(|v| v[0] == "#D55E00").map(|v| v[1]).collect();
    assert_eq!(stars.len(), 3);
    assert!(stars.iter().all(|points| points.split_whitespace().count() == 10), "{stars:?}");
    for words in ["Block 1 (stage 1)", "Block 5 (stage 4)", "not trained", "24×32 patches of 4 pixels", "x 60, y 40"] {
        assert!(svg.contains(words), "{words}");
    }
    assert!(svg.contains("a &lt;b&gt; &amp; c"), "names are escaped");
    // Lines from the centre to each neighbour, when they are asked for.
    let lines = |svg: &str| svg.matches("<polyline ").count();
    let links: usize = picture.links().blocks.iter().map(|b| b.k).sum();
    assert!(lines(&draw(true).svg().unwrap()) >= lines(&svg) + links);
    // The PNG is the same picture: the colour in the middle of a tile is mixed from photograph and centre.
    let png = picture.image().unwrap();
    assert_eq!((png.width(), png.height()), {
        let size = &elements(&svg, "svg", &["width", "height"])[0];
        (size[0].parse().unwrap(), size[1].parse().unwrap())
    });
}

#[test]
fn what_cannot_be_drawn_is_one_clear_line() {
    let folder = tempfile::tempdir().unwrap();
    let image = draw_image(folder.path(), 64, 48);
    let broken = folder.path().join("broken.jpg");
    std::fs::write(&broken, "no image").unwrap();
    let missing = folder.path().join("missing.png");
    let check = |model: &str, image: &Path, more: &[&str], words: &[&str]| {
        let args = [&[model, "--image", text(image), "--out", text(folder.path())], &SMALL[..], more].concat();
        let output = run(PLOT_GRAPH, &args);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{more:?}");
        // What was loaded may be said before.
        let lines: Vec<&str> = error.lines().filter(|line| !line.starts_with("no --weights")).collect();
        assert!(lines.len() == 1 && lines[0].starts_with("error: "), "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    check("pvig_ti", &image, &["--blocks", "1,6"], &["no block 6", "blocks 1 to 5"]);
    check("pvig_ti", &image, &["--blocks", "first"], &["--blocks takes block numbers", "`first`"]);
    check("pvig_ti", &image, &["--center", "64,3"], &["64,3 is outside the image", "64×48 pixels"]);
    check("pvig_ti", &image, &["--center", "-2,3"], &["-2,3 is outside the image"]);
    check("pvig_ti", &image, &["--center", "middle"], &["x,y in pixels", "`middle`"]);
    check("pvig_ti", &image, &["--cell", "12,3"], &["12,3 is outside the grid of block 1", "12 rows and 16 columns"]);
    check("pvig_ti", &image, &["--centers", "0"], &["no centre"]);
    check("pvig_ti", &broken, &[], &["broken.jpg", "neither JPEG nor PNG"]);
    check("pvig_ti", &missing, &[], &["missing.png"]);
    check("pvig_ti", &image, &["--weights", text(&broken)], &["broken.jpg"]);
    check("pvig_ti", &image, &["--size", "9"], &["--size"]);
    for size in ["70000,70000", "4294967295,4294967295"] {
        check("pvig_ti", &image, &["--size", size], &["shapes.png would have", "smaller --size"]);
    }
    check("resnet50", &image, &[], &["resnet50 has no graph", "pvig_s"]);
    check("pvig_xl", &image, &[], &["no model `pvig_xl`", "pvig_ti"]);
}

#[test]
fn the_example_draws_what_it_says() {
    let folder = tempfile::tempdir().unwrap();
    let picture = plot_graph::draw(&draw_image(folder.path(), 64, 48)).unwrap();
    let blocks: Vec<(usize, usize)> = picture.links().blocks.iter().map(|b| (b.block, b.centers.len())).collect();
    assert_eq!(blocks, [(1, 3), (12, 3)]);
    // In the last block there are 4 patches, and all are neighbours.
    let mut last = picture.links().blocks[1].centers[0].neighbours.clone();
    last.sort_unstable();
    assert_eq!(last, [0, 1, 2, 3]);
}

#[test]
fn images_of_any_size_are_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let changes: Vec<String> = SMALL.iter().filter(|a| **a != "--set").map(|a| a.to_string()).collect();
    let viewer = GraphViewer::open("pvig_ti", &ViewerOptions { changes, ..ViewerOptions::default() }).unwrap();
    for (width, height) in [(1, 1), (5, 90), (33, 31), (400, 20)] {
        let image = decode::open(&draw_image(folder.path(), width, height), false).unwrap();
        let view = viewer.view(&image, "i").unwrap();
        let picture =
            GraphPicture::new(&view, &[0, 2, 4], &Centers::Salient(2), PictureOptions { edges: true }).unwrap();
        for (block, graph) in picture.links().blocks.iter().zip([0, 2, 4].map(|b| &view.blocks[b])) {
            for center in &block.centers {
                assert_eq!(graph.neighbours(center.node), center.neighbours);
                for &[x, y, w, h] in center.patches.iter().chain([&center.patch]) {
                    assert!(w > 0 && h > 0 && x + w <= width && y + h <= height, "{width}×{height} {center:?}");
                }
            }
        }
        assert!(picture.image().unwrap().width() >= 560);
    }
}

#[test]
fn statistics_of_a_data_set_say_how_many_neighbours_are_in_the_same_object() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    shapes::ensure(&data, &ShapesConfig { train: 1, val: 3, side: 256, seed: 1 }).unwrap();
    let out = folder.path().join("out");
    let args = ["pvig_ti", "--stats", "--data", text(&data), "--limit", "2", "--out", text(&out)];
    let said = works(PLOT_GRAPH, &[&args[..], &SMALL].concat());
    assert!(said.contains("same object") && said.contains("weights of pvig_ti are random"), "{said}");
    let stats: Value = serde_json::from_slice(&std::fs::read(out.join("links.json")).unwrap()).unwrap();
    assert_eq!(stats["images"], 2);
    let blocks = stats["blocks"].as_array().unwrap();
    assert_eq!(blocks.len(), 5);
    for block in blocks {
        let of = |name: &str| block[name].as_f64().unwrap_or_else(|| panic!("{name} of {block}"));
        for name in ["same_object", "same_object_random", "same_object_nearest"] {
            assert!((0.0..=1.0).contains(&of(name)), "{block}");
        }
        assert!(of("mean_distance") > 0.0 && of("random_distance") > 0.0);
        let within: Vec<f64> = block["within"].as_array().unwrap().iter().map(|w| w[1].as_f64().unwrap()).collect();
        assert!(within.windows(2).all(|pair| pair[0] <= pair[1]) && within[3] > 0.5, "{within:?}");
        // The nearest patches on the image are in the same object more often than any.
        assert!(of("same_object_nearest") > of("same_object_random"), "{block}");
    }
    assert!(out.join("links.png").is_file() && out.join("links.svg").is_file());
}
