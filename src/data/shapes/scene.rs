//! One image of the built-in data and what is in it.

use image::RgbImage;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use vigdet_coco::rle::Rle;

use super::outline::{bar, lump, Pose, Shape};
use super::paint::{grain, Coverage, Texture};
use super::region::{bounds, Point, Region};

/// √area of the smallest object, in pixels.
pub const SMALLEST: f64 = 8.0;
/// √area of the largest object, as a fraction of the image's shorter side.
pub const LARGEST: f64 = 0.6;
/// At least this fraction of an object can be seen: fewer, and its class could not be told.
const LEAST_VISIBLE: f64 = 0.7;
/// An object counts as partly hidden when more than this fraction of it cannot be seen.
pub const HIDDEN: f64 = 0.05;
/// Probability that something is put in front of an object on purpose.
const HIDE: f64 = 0.25;
/// Probability that the location of an object may be cut by the image's edge.
const AT_EDGE: f64 = 0.15;
/// Pieces of clutter behind the objects.
const CLUTTER: std::ops::Range<usize> = 2..7;
/// Largest clutter, as a fraction of the image's shorter side.
const LARGEST_CLUTTER: f64 = 0.2;
/// Probability of a crowd in an image.
const CROWD: f64 = 0.08;
/// Random locations that are tried for an object.
const TRIES: usize = 300;

/// An image and its objects.
#[derive(Debug)]
pub struct Scene {
    /// The picture.
    pub image: RgbImage,
    /// Objects and crowds, those at the back first.
    pub objects: Vec<Object>,
}

/// An object, or a crowd of them.
#[derive(Debug)]
pub struct Object {
    /// Index into [`Shape::ALL`].
    pub class: usize,
    /// Polygons of what can be seen of it, in pixels, without holes.
    pub polygons: Vec<Vec<Point>>,
    /// Set for a crowd: its mask.
    pub crowd: Option<Rle>,
    /// √area of the whole outline, seen or not, in pixels.
    pub size: f64,
    /// Share of the outline that can be seen.
    pub visible: f64,
}

/// Something painted, from the back to the front.
struct Layer {
    outlines: Vec<Vec<Point>>,
    /// Area before anything hides it, in pixels.
    whole: f64,
    seen: Region,
    /// `None`: clutter, which may be hidden at will.
    class: Option<usize>,
    crowd: bool,
    size: f64,
    /// Hardly stands out from what lies below.
    faint: bool,
}

struct Composer<'a> {
    width: u32,
    height: u32,
    layers: Vec<Layer>,
    rng: &'a mut ChaCha8Rng,
}

impl Scene {
    /// Draws a scene whose longer side is at most `side` pixels.
    pub fn draw(side: u32, rng: &mut ChaCha8Rng) -> Self {
        let (width, height) = image_size(side, rng);
        let mut composer = Composer { width, height, layers: Vec::new(), rng };
        composer.compose();
        composer.paint()
    }
}

/// Sides from 80% to all of `side`, aspect ratios from 3:5 to 5:3.
fn image_size(side: u32, rng: &mut ChaCha8Rng) -> (u32, u32) {
    let long = f64::from(side) * rng.random_range(0.8..1.0);
    let short = long * rng.random_range(0.6..1.0);
    let (long, short) = (long.round() as u32, short.round() as u32);
    if rng.random_bool(0.6) {
        (long, short)
    } else {
        (short, long)
    }
}

impl Composer<'_> {
    fn compose(&mut self) {
        for _ in 0..self.rng.random_range(CLUTTER) {
            self.clutter();
        }
        if self.rng.random_bool(CROWD) {
            self.crowd();
        }
        let most = LARGEST * f64::from(self.width.min(self.height));
        let count = self.rng.random_range(1..=12);
        // Large ones mostly at the back: a small one there would be hidden by anything that comes later.
        let mut sizes: Vec<(f64, f64)> = (0..count)
            .map(|_| {
                let log = self.rng.random_range(0.0..libm::log(most / SMALLEST));
                (log + self.rng.random_range(-1.0..1.0), SMALLEST * libm::exp(log))
            })
            .collect();
        sizes.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, size) in sizes {
            self.object(size);
        }
    }

    /// A centre: anywhere if the edge may cut the outline, else where all of `extent` fits.
    fn place(&mut self, extent: [f64; 4], at_edge: bool) -> Point {
        let sides = [f64::from(self.width), f64::from(self.height)];
        std::array::from_fn(|axis| {
            let (low, high) = (-extent[axis], sides[axis] - extent[axis + 2]);
            if at_edge || high <= low {
                self.rng.random_range(0.0..sides[axis])
            } else {
                self.rng.random_range(low..high)
            }
        })
    }

    /// Puts a layer in front, unless it hides too much of what is there or shows too little itself.
    fn push(&mut self, outlines: Vec<Vec<Point>>, class: Option<usize>, crowd: bool, size: f64) -> bool {
        let (width, height) = (f64::from(self.width), f64::from(self.height));
        let seen = Region::new(&outlines, width, height);
        let whole = if crowd { seen.area() } else { size * size };
        let faint = class.is_none() && self.layers.iter().all(|below| below.class.is_none());
        let layer = Layer { outlines, whole, seen, class, crowd, size, faint };
        let enough = |layer: &Layer, seen: &Region| {
            let area = seen.area();
            layer.class.is_none() || (area >= LEAST_VISIBLE * layer.whole && area >= SMALLEST * SMALLEST)
        };
        // What the edge cuts off may bring the smallest below the least size: they go elsewhere.
        if !enough(&layer, &layer.seen) {
            return false;
        }
        let mut cut: Vec<(usize, Region)> = Vec::new();
        for (i, below) in self.layers.iter().enumerate().filter(|(_, below)| below.class.is_some()) {
            let mut seen = below.seen.clone();
            for outline in layer.outlines.iter().filter(|outline| touches(outline, &below.seen)) {
                seen = seen.without(outline);
            }
            if !enough(below, &seen) {
                return false;
            }
            cut.push((i, seen));
        }
        for (i, seen) in cut {
            self.layers[i].seen = seen;
        }
        self.layers.push(layer);
        true
    }

    /// Something that is no object, behind all of them.
    fn clutter(&mut self) {
        let size = self.rng.random_range(6.0..LARGEST_CLUTTER * f64::from(self.width.min(self.height)));
        let outline = if self.rng.random_bool(0.5) { bar(self.rng) } else { lump(self.rng) };
        let centre = self.place([0.0; 4], true);
        let placed = Pose::draw(size, self.rng).place(&outline, centre);
        self.push(vec![placed], None, false, size);
    }

    /// An object of a random class, and perhaps something in front of it.
    fn object(&mut self, size: f64) {
        let class = self.rng.random_range(0..Shape::ALL.len());
        let outline = Shape::ALL[class].outline();
        let at_edge = self.rng.random_bool(AT_EDGE);
        for _ in 0..TRIES {
            let pose = Pose::draw(size, self.rng);
            let Some(extent) = bounds(pose.place(&outline, [0.0; 2]).iter()) else { return };
            let centre = self.place(extent, at_edge);
            if self.push(vec![pose.place(&outline, centre)], Some(class), false, size) {
                if self.rng.random_bool(HIDE) {
                    self.hide(extent, centre, size);
                }
                return;
            }
        }
    }

    /// Something that is no object in front of the last one.
    fn hide(&mut self, extent: [f64; 4], centre: Point, size: f64) {
        let target = self.layers.len() - 1;
        for _ in 0..20 {
            let outline = bar(self.rng);
            let cover = size * self.rng.random_range(0.35..0.8);
            let at = std::array::from_fn(|axis| centre[axis] + self.rng.random_range(extent[axis]..extent[axis + 2]));
            let placed = Pose::draw(cover, self.rng).place(&outline, at);
            let before = self.layers[target].seen.area();
            let after = self.layers[target].seen.without(&placed).area();
            if before - after > 2.0 * HIDDEN * size * size && self.push(vec![placed], None, false, cover) {
                return;
            }
        }
    }

    /// Many small objects of one class so close together that nobody would draw a box around each.
    fn crowd(&mut self) {
        let class = self.rng.random_range(0..Shape::ALL.len());
        let outline = Shape::ALL[class].outline();
        let side = f64::from(self.width.min(self.height));
        let (across, down) = (side * self.rng.random_range(0.2..0.35), side * self.rng.random_range(0.1..0.25));
        let extent = [-across / 2.0, -down / 2.0, across / 2.0, down / 2.0];
        let centre = self.place(extent, false);
        let size = self.rng.random_range(SMALLEST..16.0);
        let outlines: Vec<Vec<Point>> = (0..self.rng.random_range(14..24))
            .map(|_| {
                let at =
                    std::array::from_fn(|axis| centre[axis] + self.rng.random_range(extent[axis]..extent[axis + 2]));
                Pose::draw(size, self.rng).place(&outline, at)
            })
            .collect();
        self.push(outlines, Some(class), true, size);
    }

    fn paint(self) -> Scene {
        let Self { width, height, layers, rng } = self;
        let mut image = RgbImage::new(width, height);
        let side = f64::from(width.max(height));
        Texture::background(side, rng).fill(&mut image);
        for layer in &layers {
            for outline in &layer.outlines {
                let coverage = Coverage::new(outline, width, height);
                let below = coverage.mean(&image);
                let texture = if layer.faint {
                    Texture::draw_near(below, layer.size, rng)
                } else {
                    Texture::draw_against(below, layer.size, rng)
                };
                coverage.paint(&mut image, &texture);
            }
        }
        grain(&mut image, rng.random_range(1..8), rng);
        let objects = layers.into_iter().filter_map(|layer| layer.object(width, height)).collect();
        Scene { image, objects }
    }
}

impl Layer {
    fn object(self, width: u32, height: u32) -> Option<Object> {
        let visible = self.seen.area() / self.whole;
        let polygons = self.seen.polygons();
        let crowd = self.crowd.then(|| mask(&polygons, width, height)).flatten();
        Some(Object { class: self.class?, polygons, crowd, size: self.size, visible })
    }
}

/// The pixels that polygons cover.
fn mask(polygons: &[Vec<Point>], width: u32, height: u32) -> Option<Rle> {
    let mut all = vec![false; width as usize * height as usize];
    for polygon in polygons {
        Coverage::new(polygon, width, height).add_to(&mut all, width);
    }
    Rle::from_rows(height, width, &all).ok()
}

/// Whether the boxes of a polygon and a region overlap.
fn touches(polygon: &[Point], region: &Region) -> bool {
    match (bounds(polygon.iter()), region.bounds()) {
        (Some(a), Some(b)) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3],
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::order::generator;

    fn scenes(count: u64) -> Vec<Scene> {
        (0..count).map(|i| Scene::draw(256, &mut generator(3, 0, i))).collect()
    }

    #[test]
    fn sizes_are_spread_evenly_in_logarithm_and_a_quarter_is_partly_hidden() {
        let scenes = scenes(300);
        let single = || scenes.iter().flat_map(|s| &s.objects).filter(|o| o.crowd.is_none());
        let count = single().count() as f64;
        let hidden = single().filter(|o| o.visible < 1.0 - HIDDEN).count() as f64;
        assert!(hidden / count >= 0.3, "{hidden} of {count}");
        assert!(single().all(|o| o.visible >= LEAST_VISIBLE - 1e-3));

        // Five bands between 8 pixels and 60% of the shorter side, each with about a fifth of the objects.
        let mut bands = [0.0; 5];
        for scene in &scenes {
            let most = LARGEST * f64::from(scene.image.width().min(scene.image.height()));
            for object in scene.objects.iter().filter(|o| o.crowd.is_none()) {
                assert!(object.size >= SMALLEST && object.size <= most);
                let fraction = (object.size / SMALLEST).ln() / (most / SMALLEST).ln();
                bands[((fraction * 5.0) as usize).min(4)] += 1.0;
            }
        }
        for band in bands {
            assert!((band / count - 0.2).abs() < 0.03, "{bands:?}");
        }
    }

    #[test]
    fn images_hold_one_to_twelve_objects_of_every_class_and_some_crowds() {
        let scenes = scenes(300);
        let mut per_class = [0; Shape::ALL.len()];
        let mut crowds = 0;
        for scene in &scenes {
            let single = scene.objects.iter().filter(|o| o.crowd.is_none()).count();
            assert!((1..=12).contains(&single), "{single}");
            crowds += scene.objects.len() - single;
            scene.objects.iter().for_each(|o| per_class[o.class] += 1);
        }
        assert!((8..60).contains(&crowds), "{crowds}");
        let least = per_class.iter().min().unwrap();
        let most = per_class.iter().max().unwrap();
        assert!(*most < least * 3 / 2, "{per_class:?}");
        let aspects: Vec<f64> =
            scenes.iter().map(|s| f64::from(s.image.width()) / f64::from(s.image.height())).collect();
        assert!(aspects.iter().any(|a| *a < 0.7) && aspects.iter().any(|a| *a > 1.5));
    }

    #[test]
    fn an_object_is_seen_where_its_polygons_are() {
        // A scene of one object in front: its polygons' area is that of its outline.
        let mut rng = generator(1, 0, 0);
        let mut composer = Composer { width: 100, height: 80, layers: Vec::new(), rng: &mut rng };
        composer.object(20.0);
        let object = composer.paint().objects.remove(0);
        let total: f64 = object.polygons.iter().map(|p| super::super::region::area(p).abs()).sum();
        assert!((total - object.visible * 400.0).abs() < 0.5, "{total}");
    }
}
