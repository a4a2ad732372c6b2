//! The kinds of findings.

macro_rules! kinds {
    ($($variant:ident $name:literal $hurts:literal $what:literal,)*) => {
        /// A kind of finding.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $(#[doc = $what] $variant,)*
        }

        impl Kind {
            /// All of them, in the order of reports.
            pub const ALL: &'static [Kind] = &[$(Kind::$variant,)*];

            /// A short name, which stays.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$variant => $name,)* }
            }

            /// Whether training or evaluation is worse for it.
            pub fn hurts(self) -> bool {
                match self { $(Kind::$variant => $hurts,)* }
            }

            /// What it means, and where it is not plain what to do.
            pub fn what(self) -> &'static str {
                match self { $(Kind::$variant => $what,)* }
            }
        }
    };
}

kinds! {
    LabelUnclear "label-unclear" true "a label cannot be understood",
    ImageMissing "image-missing" true "the image is not there",
    ImageEmpty "image-empty" true "the image file has no bytes",
    ImageUnknown "image-unknown" true "the file is no image of a format that can be read",
    ImageBroken "image-broken" true "the image is damaged or cut off",
    ImageHuge "image-huge" true "the image has more than 178,956,970 pixels: it is refused",
    NameLeavesFolder "name-leaves-folder" true "the file name leads out of the image folder",
    NameEmpty "name-empty" true "the image has no file name",
    NameOtherCase "name-other-case" true "the image is there under another case of its name",
    EndingWrong "ending-wrong" false "the name's ending says another format than the content",
    SizeUnknown "size-unknown" false "the labels do not say how large the image is: the file does",
    SizeDiffers "size-differs" true "the labels say another size than the file: are the boxes those of this file?",
    SizeSwapped "size-swapped" true "the labels have width and height exchanged",
    TurnedByExif "turned-by-exif" true "boxes are of the image as shown, turned by EXIF: train with data.exif=true",
    ExifOrientation "exif-orientation" false "the image is shown turned by EXIF; boxes are of the image as stored",
    ImageTwice "image-twice" true "two entries name one image file",
    ImageIdTwice "image-id-twice" true "two images have one id",
    AnnotationIdTwice "annotation-id-twice" true "two annotations have one id",
    ClassIdTwice "class-id-twice" true "two classes have one id",
    AnnotationIdZero "annotation-id-zero" false "an annotation has the id 0, which pycocotools never counts as found",
    ImageIdUnknown "image-id-unknown" true "the annotation is in an image that is not there",
    ClassIdUnknown "class-id-unknown" true "the annotation is of a class that is not there",
    ClassIdsShifted "class-ids-shifted" true "class ids are shifted by one",
    ClassIdsDiffer "class-ids-differ" true "a class has another id or name in another split",
    ClassNameTwice "class-name-twice" true "two classes have one name, but for case and spaces",
    ClassNameEmpty "class-name-empty" false "a class has no name",
    ClassUnused "class-unused" false "a class has no object in any split",
    ClassNotInTrain "class-not-in-train" true "a class has objects to validate on, and none to train on",
    ClassNotInVal "class-not-in-val" false "a class has objects to train on, and none to validate on",
    ClassRare "class-rare" false "a class has fewer than 10 objects to train on",
    BoxNotFinite "box-not-finite" true "a box has a value that is no number",
    BoxesInFractions "boxes-in-fractions" true "all boxes lie within 0 and 1: are they fractions? Pixels are expected",
    BoxesInPercent "boxes-in-percent" true "all boxes lie within 0 and 100 of larger images: are they percent?",
    BoxesAsCorners "boxes-as-corners" true "boxes fit their images only as corners x₀, y₀, x₁, y₁",
    BoxesAsCentres "boxes-as-centres" true "boxes fit their images only as centre and size",
    BoxesAxesSwapped "boxes-axes-swapped" true "boxes fit their images only as y, x, height, width",
    BoxNegative "box-negative" true "a box has a negative width or height",
    BoxEmpty "box-empty" true "a box has no width or no height",
    BoxBelowPixel "box-below-pixel" true "less than a pixel of a side of the box is inside: left out of training",
    BoxOutside "box-outside" true "a box lies outside of its image",
    BoxLeavesImage "box-leaves-image" false "a box leaves its image by more than a pixel: it is clipped",
    BoxWholeImage "box-whole-image" false "a box covers its whole image",
    BoxThin "box-thin" false "a box is more than 20 times as long as it is wide",
    ObjectTwice "object-twice" true "the same box of the same class twice",
    ObjectNearlyTwice "object-nearly-twice" false "two boxes of one class overlap by more than 0.95",
    ObjectTwoClasses "object-two-classes" false "the same box with two classes",
    PolygonFewPoints "polygon-few-points" true "a polygon has fewer than three points",
    PolygonOddNumbers "polygon-odd-numbers" true "a polygon has an odd number of coordinates",
    PolygonNotFinite "polygon-not-finite" true "a polygon has a coordinate that is no number",
    PolygonCrossesItself "polygon-crosses-itself" false "the sides of a polygon cross",
    PolygonOutside "polygon-outside" false "a polygon leaves its image by more than a pixel",
    PolygonNotInBox "polygon-not-in-box" true "polygon and box are not of one object: they disagree",
    MaskSizeDiffers "mask-size-differs" true "a mask has another size than its image",
    MaskEmpty "mask-empty" true "a mask has no pixel",
    MaskNotInBox "mask-not-in-box" true "mask and box are not of one object: they disagree",
    AreaWrong "area-wrong" false "the area is not that of the object: evaluation by size goes by it",
    SameInSplits "same-in-splits" true "the same image file in two splits",
    NearlySameInSplits "nearly-same-in-splits" true "nearly the same picture in two splits",
    SameInSplit "same-in-split" false "the same image file twice in a split",
    NearlySameInSplit "nearly-same-in-split" false "nearly the same picture twice in a split",
    ImageWithoutObjects "image-without-objects" false "an image has no objects: it is validated on, not trained on",
    ImageOnlyCrowds "image-only-crowds" false "an image has crowds and no other object: left out of training",
    ManyObjects "many-objects" false "an image has more than 100 objects: evaluation counts 100 detections an image",
    ImageUnlisted "image-unlisted" false "an image in the folder is in no label file",
    ObjectsBelow8 "objects-below-8" false "objects are below 8 pixels (√area) after resizing",
    ObjectsBelow16 "objects-below-16" false "objects are between 8 and 16 pixels (√area) after resizing",
}
