//! Images of layers: what each form means, and every way a hostile one lies. Each refusal stands beside the sound image that
//! differs from it in that alone.

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::*;
use crate::image::store::{SourceKind, digest_text};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

fn digest(bytes: &[u8]) -> String {
    digest_text(Sha256::digest(bytes).into())
}

/// An OCI layout that can be bent before it is written.
struct Layout {
    blobs: Vec<(String, Vec<u8>)>,
    manifest: Value,
    config: Value,
    /// What the index says the manifest is.
    index_media_type: &'static str,
}

impl Layout {
    /// One gzip layer for each tar.
    fn new(layers: &[Vec<u8>]) -> Self {
        let mut layout = Self { blobs: Vec::new(), manifest: json!({}), config: json!({}), index_media_type: MANIFEST };
        let described: Vec<Value> = layers.iter().map(|tar| layout.blob(gzip(tar), &format!("{LAYER}+gzip"))).collect();
        let diff_ids: Vec<String> = layers.iter().map(|tar| digest(tar)).collect();
        layout.config = json!({
            "architecture": oci_spec::image::Arch::default().to_string(), "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": diff_ids}, "config": {"Env": ["COLOUR=blue"], "WorkingDir": "/srv"},
        });
        layout.manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": described});
        layout
    }

    fn blob(&mut self, bytes: Vec<u8>, media_type: &str) -> Value {
        let descriptor = json!({"mediaType": media_type, "digest": digest(&bytes), "size": bytes.len()});
        self.blobs.push((digest(&bytes), bytes));
        descriptor
    }

    /// Files of the layout by name.
    fn files(mut self) -> Vec<(String, Vec<u8>)> {
        if self.manifest["config"].is_null() {
            let config = self.config.to_string().into_bytes();
            self.manifest["config"] = self.blob(config, CONFIG);
        }
        let manifest = self.manifest.to_string().into_bytes();
        let described = self.blob(manifest, self.index_media_type);
        let index = json!({"schemaVersion": 2, "manifests": [described]}).to_string().into_bytes();
        self.with_index(index)
    }

    fn with_index(self, index: Vec<u8>) -> Vec<(String, Vec<u8>)> {
        let blobs = self.blobs.into_iter().map(|(digest, bytes)| (format!("blobs/sha256/{}", &digest[7..]), bytes));
        let marker = (String::from("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        blobs.chain([marker, ("index.json".into(), index)]).collect()
    }
}

fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    archive(&files.iter().map(|(name, bytes)| file(name, bytes)).collect::<Vec<_>>())
}

fn sound() -> Layout {
    Layout::new(&[archive(&[file("a", b"one")])])
}

/// `bend` makes it one that must be refused; without it the same layout passes.
fn refused(bend: impl Fn(&mut Layout), is_right: impl Fn(&ImageError) -> bool) {
    Fixture::new().import(&tar_of(&sound().files())).expect("the control: nothing bent");
    let fixture = Fixture::new();
    let mut layout = sound();
    bend(&mut layout);
    let error = fixture.import(&tar_of(&layout.files())).expect_err("bent");
    assert!(is_right(&error), "{error:?}");
    fixture.assert_nothing_stays();
}

#[test]
fn every_form_of_one_image_gives_the_same_files() {
    let lower = archive(&[link(EntryType::Directory, "d", ""), file("d/old", b"1"), file("d/kept", b"2"), file("gone", b"3")]);
    let upper = archive(&[file("d/.wh.old", b""), file(".wh.gone", b""), file("d/new", b"4")]);
    let layout = || Layout::new(&[lower.clone(), upper.clone()]);
    let oci = tar_of(&layout().files());
    let config = layout().config.to_string().into_bytes();
    let name = format!("{}.json", &digest(&config)[7..]);
    let [one, two, three] = ["1", "2", "3"].map(|digit| format!("{}/layer.tar", digit.repeat(64)));
    let manifest = json!([{"Config": name, "RepoTags": ["image:1"], "Layers": [one, two]}]);
    let docker = archive(&[
        file(&one, &lower),
        link(EntryType::Symlink, &two, &format!("../{three}")),
        file(&three, &upper),
        file(&name, &config),
        file("manifest.json", manifest.to_string().as_bytes()),
    ]);
    for (bytes, form) in [
        (oci.clone(), SourceKind::OciArchive),
        (gzip(&oci), SourceKind::OciArchive),
        (docker.clone(), SourceKind::DockerArchive),
        (zstd::encode_all(docker.as_slice(), 3).expect("packed"), SourceKind::DockerArchive),
    ] {
        let fixture = Fixture::new();
        let info = fixture.import(&bytes).expect("a sound image").info;
        assert_eq!((info.source, info.layers.len(), info.settings.env["COLOUR"].as_str()), (form, 2, "blue"));
        let there = |name: &str| fixture.lower().join(name).exists();
        assert!(there("d/new") && there("d/kept") && !there("d/old") && !there("gone") && !there("d/.wh.old"), "{form:?}");
        for digest in &info.blobs {
            assert_eq!(self::digest(&fixture.store.document(digest).expect("kept")), *digest);
        }
        fixture.store.remove("image").expect("removed");
        assert_eq!(fixture.store.prune().expect("pruned").blobs, 0, "its documents went with it");
    }
    let fixture = Fixture::new();
    let directory = fixture.dir.path().join("layout");
    for (name, bytes) in layout().files() {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        std::fs::write(path, bytes).expect("a file");
    }
    assert_eq!(fixture.take(&directory, "image").expect("a sound layout").info.source, SourceKind::OciLayout);
}

/// What is left of `names` when the second layer is laid over the first.
fn layered(lower: &[Entry<'_>], upper: &[Entry<'_>]) -> Result<Fixture, ImageError> {
    let fixture = Fixture::new();
    fixture.import(&tar_of(&Layout::new(&[archive(lower), archive(upper)]).files())).map(|_| fixture)
}

#[test]
fn an_opaque_directory_hides_what_is_below_it_wherever_it_stands() {
    let lower =
        [link(EntryType::Directory, "d", ""), file("d/x", b"1"), link(EntryType::Directory, "d/e", ""), file("d/e/y", b"2")];
    let own = || file("d/own", b"3");
    for upper in [[own(), file("d/.wh..wh..opq", b"")], [file("d/.wh..wh..opq", b""), own()]] {
        let fixture = layered(&lower, &upper).expect("a sound image");
        let there = |name: &str| fixture.lower().join(name).exists();
        assert!(there("d/own") && !there("d/x") && !there("d/e"));
    }
    let fixture = layered(&lower, &[own()]).expect("a sound image");
    assert!(fixture.lower().join("d/e/y").exists(), "the control: nothing opaque");
}

#[test]
fn a_later_layer_replaces_a_directory_by_a_file_and_a_link_by_a_directory() {
    let lower = [link(EntryType::Directory, "d", ""), file("d/x", b"1"), link(EntryType::Symlink, "l", "d")];
    let fixture =
        layered(&lower, &[file("d", b"file"), link(EntryType::Directory, "l", ""), file("l/z", b"2")]).expect("sound");
    assert!(fixture.lower().join("d").is_file() && fixture.lower().join("l/z").is_file());
    let same = [link(EntryType::Directory, "d", ""), file("d", b"file")];
    let error = layered(&[], &same).map(|_| ()).expect_err("within one layer");
    assert!(matches!(error, ImageError::EntryRefused { refusal: Refusal::ReplacesDirectory, .. }), "{error:?}");
}

#[test]
fn a_whiteout_removes_nothing_outside_and_nothing_through_a_link() {
    let fixture = Fixture::new();
    let outside = fixture.dir.path().join("outside");
    std::fs::create_dir(&outside).expect("a directory");
    std::fs::write(outside.join("victim"), "").expect("a file");
    let target = outside.to_str().expect("a name");
    let lower = [link(EntryType::Symlink, "door", target), link(EntryType::Directory, "d", ""), file("d/victim", b"")];
    for name in ["door/.wh.victim", "door/.wh..wh..opq"] {
        let error = layered(&lower, &[file(name, b"")]).map(|_| ()).expect_err("through a link");
        assert!(matches!(error, ImageError::EntryRefused { refusal: Refusal::ParentNotADirectory, .. }), "{error:?}");
    }
    for name in [".wh...", ".wh.", ".wh..", "d/.wh.x/y"] {
        let error = layered(&lower, &[file(name, b"")]).map(|_| ()).expect_err("no whiteout");
        assert!(matches!(error, ImageError::EntryRefused { refusal: Refusal::Whiteout, .. }), "{name}: {error:?}");
    }
    assert!(outside.join("victim").exists());
    let fixture = layered(&lower, &[file("d/.wh.victim", b""), file(".wh.door", b"")]).expect("the control: real ones");
    assert!(!fixture.lower().join("d/victim").exists() && !fixture.lower().join("door").is_symlink());
    assert!(outside.join("victim").exists(), "the link went, not what it names");
}

#[test]
fn whiteouts_that_read_the_same_directory_again_and_again_are_bounded() {
    let names: Vec<String> = (0..60).map(|number| format!("d/f{number}")).collect();
    let opaque: Vec<String> = (0..60).map(|number| format!("d/.wh.f{number}")).collect();
    let lower: Vec<Entry<'_>> = names.iter().map(|name| file(name, b"")).collect();
    let upper: Vec<Entry<'_>> = opaque.iter().map(|name| file(name, b"")).collect();
    let image = tar_of(&Layout::new(&[archive(&lower), archive(&upper)]).files());
    let bounds = |entries_max| Bounds { entries_max, ..Bounds::default() };
    Fixture::new().assert_bounded(&image, bounds(150), "entries_max");
    Fixture::new().import_bounded(&image, bounds(250)).expect("the control: a wider bound");
}

#[test]
fn a_blob_that_is_not_what_its_digest_says_is_refused() {
    let mismatch = |error: &ImageError| matches!(error, ImageError::DigestMismatch { .. });
    // One byte of the packed layer's header (its time), which the unpacked tar does not show.
    refused(|layout| layout.blobs[0].1[4] ^= 1, mismatch);
    refused(
        |layout| {
            let config = layout.config.to_string().into_bytes();
            layout.manifest["config"] = layout.blob(config, CONFIG);
            let last = layout.blobs.last_mut().expect("the configuration");
            last.1 = String::from_utf8(last.1.clone()).expect("JSON").replace("blue", "reds").into_bytes();
        },
        mismatch,
    );
}

#[test]
fn a_layer_that_unpacks_to_something_else_is_refused() {
    refused(
        |layout| layout.config["rootfs"]["diff_ids"][0] = json!(digest(b"something else")),
        |error| matches!(error, ImageError::LayerMismatch { layer: 0, .. }),
    );
}

#[test]
fn a_size_that_is_not_the_blobs_is_refused() {
    refused(|layout| layout.manifest["layers"][0]["size"] = json!(1), |error| matches!(error, ImageError::SizeMismatch { .. }));
}

#[test]
fn a_blob_that_is_cut_off_or_missing_is_refused() {
    refused(
        |layout| {
            let half = layout.blobs[0].1.len() / 2;
            layout.blobs[0].1.truncate(half);
        },
        |error| matches!(error, ImageError::SizeMismatch { .. }),
    );
    refused(
        |layout| {
            let half = layout.blobs[0].1.len() / 2;
            layout.blobs[0].1.truncate(half);
            layout.manifest["layers"][0]["size"] = json!(half);
        },
        |error| matches!(error, ImageError::DigestMismatch { .. }),
    );
    refused(|layout| drop(layout.blobs.remove(0)), |error| matches!(error, ImageError::BlobMissing { .. }));
}

#[test]
fn confused_media_types_are_refused() {
    let confused = |error: &ImageError| matches!(error, ImageError::MediaType { .. });
    for kind in [LAYER.to_owned(), format!("{LAYER}+zstd"), "text/html".into(), format!("{LAYER}+encrypted")] {
        refused(|layout| layout.manifest["layers"][0]["mediaType"] = json!(kind), confused);
    }
    // What an image calls a layer is told, and neither fills a terminal nor acts on it.
    let hostile = format!("\u{1b}[2J{}", "x".repeat(100_000));
    refused(
        |layout| layout.manifest["layers"][0]["mediaType"] = json!(hostile),
        |error| confused(error) && error.to_string().len() < 1000 && !error.to_string().contains('\u{1b}'),
    );
    refused(|layout| layout.index_media_type = INDEX, confused);
    refused(|layout| layout.manifest["mediaType"] = json!(INDEX), confused);
    refused(
        |layout| {
            let config = layout.config.to_string().into_bytes();
            layout.manifest["config"] = layout.blob(config, LAYER);
        },
        confused,
    );
    refused(|layout| layout.manifest["manifests"] = json!([]), |error| matches!(error, ImageError::Document { .. }));
}

#[test]
fn a_number_of_layers_that_the_documents_disagree_on_is_refused() {
    refused(|layout| layout.config["rootfs"]["diff_ids"] = json!([]), |error| matches!(error, ImageError::Document { .. }));
    refused(
        |layout| layout.config["rootfs"]["diff_ids"][0] = json!("sha256:../../../../etc/passwd"),
        |error| matches!(error, ImageError::Document { .. }),
    );
}

#[test]
fn digests_are_never_paths() {
    for name in ["sha256:../../../etc/passwd", "../../x", "sha512:00", "sha256:"] {
        refused(
            |layout| layout.manifest["layers"][0]["digest"] = json!(name),
            |error| matches!(error, ImageError::Document { .. }),
        );
    }
}

#[test]
fn indexes_in_each_other_end() {
    let nested = |depth: usize| {
        let mut layout = sound();
        let config = layout.config.to_string().into_bytes();
        layout.manifest["config"] = layout.blob(config, CONFIG);
        let manifest = layout.manifest.to_string().into_bytes();
        let mut inner = layout.blob(manifest, MANIFEST);
        for _ in 0..depth {
            let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [inner]}).to_string().into_bytes();
            inner = layout.blob(index, INDEX);
        }
        let index = json!({"schemaVersion": 2, "manifests": [inner]}).to_string().into_bytes();
        tar_of(&layout.with_index(index))
    };
    Fixture::new().import(&nested(2)).expect("the control: two");
    let error = Fixture::new().import(&nested(9)).expect_err("nine");
    assert!(matches!(error, ImageError::Document { .. }), "{error:?}");
}

#[test]
fn huge_and_deep_documents_are_refused() {
    let with_index = |index: Vec<u8>| tar_of(&sound().with_index(index));
    let fixture = Fixture::new();
    let huge = format!(r#"{{"schemaVersion":2,"manifests":[],"x":"{}"}}"#, "x".repeat(5 << 20));
    fixture.assert_bounded(&with_index(huge.into_bytes()), Bounds::default(), "document_bytes_max");
    let deep = format!(r#"{{"schemaVersion":2,"manifests":[],"x":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let error = fixture.import(&with_index(deep.into_bytes())).expect_err("deep");
    assert!(matches!(error, ImageError::Document { .. } | ImageError::NoneFits { .. }), "{error:?}");
    let layers = vec![archive(&[file("a", b"one")]); 3];
    let three = tar_of(&Layout::new(&layers).files());
    fixture.assert_bounded(&three, Bounds { layers_max: 2, ..Bounds::default() }, "layers_max");
    fixture.import_bounded(&three, Bounds { layers_max: 3, ..Bounds::default() }).expect("the control: a wider bound");
}

#[test]
fn links_of_an_archive_that_lead_out_or_in_circles_are_not_followed() {
    let config = sound().config.to_string().into_bytes();
    let layer = archive(&[file("a", b"one")]);
    let image = |links: &[(&str, &str)]| {
        let manifest = json!([{"Config": "c.json", "RepoTags": null, "Layers": ["l"]}]).to_string().into_bytes();
        let mut entries = vec![file("c.json", &config), file("real", &layer), file("manifest.json", &manifest)];
        entries.extend(links.iter().map(|(name, target)| link(EntryType::Symlink, name, target)));
        archive(&entries)
    };
    Fixture::new().import(&image(&[("l", "real")])).expect("the control: one link");
    for links in [&[("l", "m"), ("m", "l")][..], &[("l", "l")], &[("l", "../../../../etc/passwd")], &[("l", "/etc/passwd")]] {
        let error = Fixture::new().import(&image(links)).expect_err("nowhere");
        assert!(matches!(error, ImageError::BlobMissing { .. }), "{error:?}");
    }
}

#[test]
fn an_archive_in_an_archive_is_a_file_and_a_bomb_of_layers_is_bounded() {
    let zeros = vec![0; 40 << 20];
    let layers = vec![archive(&[file("zeros", &zeros)]); 3];
    let image = tar_of(&Layout::new(&layers).files());
    let bounds = |bytes_max| Bounds { bytes_max, ..Bounds::default() };
    Fixture::new().assert_bounded(&image, bounds(100 << 20), "bytes_max");
    let fixture = Fixture::new();
    let info = fixture.import_bounded(&image, bounds(150 << 20)).expect("the control: a wider bound").info;
    assert_eq!(info.size_bytes, 40 << 20, "what is replaced does not count");
    let nested = archive(&[file("inner.tar", &archive(&[file("x", b"")]))]);
    let fixture = Fixture::new();
    fixture.import(&nested).expect("an ordinary file");
    assert!(fixture.lower().join("inner.tar").is_file());
}

#[test]
fn one_image_of_several_is_chosen_by_platform_and_by_tag() {
    let mut layout = sound();
    let config = layout.config.to_string().into_bytes();
    layout.manifest["config"] = layout.blob(config, CONFIG);
    let manifest = layout.manifest.to_string().into_bytes();
    let described = layout.blob(manifest, MANIFEST);
    let entry = |key: &str, value: Value| {
        let mut described = described.clone();
        described[key] = value;
        described
    };
    let native = oci_spec::image::Arch::default().to_string();
    let platform = |architecture: &str| entry("platform", json!({"os": "linux", "architecture": architecture}));
    let tagged = |tag: &str| entry("annotations", json!({"org.opencontainers.image.ref.name": tag}));
    let blobs = layout.blobs.clone();
    let image = |manifests: Value| {
        let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string().into_bytes();
        tar_of(&Layout { blobs: blobs.clone(), ..sound() }.with_index(index))
    };
    let take = |bytes: &[u8], tag: Option<&str>| {
        let fixture = Fixture::new();
        let choice = Choice { tag: tag.map(str::to_owned), ..Choice::native() };
        let (source, cancel) = (fixture.write(bytes), AtomicBool::new(false));
        let (name, taken, bounds) = ("image", Taken::Refuse, Bounds::default());
        import(&fixture.store, Request { source: &source, name, choice: &choice, taken, bounds, cancel: &cancel }, &mut |_| {})
    };
    take(&image(json!([platform("s390x"), platform(&native)])), None).expect("the native one");
    assert!(matches!(take(&image(json!([platform("s390x")])), None), Err(ImageError::NoneFits { .. })));
    let two = image(json!([tagged("one"), tagged("two")]));
    assert!(matches!(take(&two, None), Err(ImageError::Ambiguous { there }) if there == "one, two"));
    take(&two, Some("two")).expect("the one that is named");
    assert!(matches!(take(&two, Some("three")), Err(ImageError::NoneFits { .. })));
}

#[test]
fn a_name_that_is_taken_is_replaced_only_when_asked_and_never_under_a_session() {
    let fixture = Fixture::new();
    let take = |bytes: &[u8], taken| {
        let (source, choice, cancel) = (fixture.write(bytes), Choice::native(), AtomicBool::new(false));
        let (name, bounds) = ("image", Bounds::default());
        import(&fixture.store, Request { source: &source, name, choice: &choice, taken, bounds, cancel: &cancel }, &mut |_| {})
    };
    let first = take(&tar_of(&sound().files()), Taken::Refuse).expect("the first").info;
    let other = tar_of(&Layout::new(&[archive(&[file("b", b"two")])]).files());
    assert!(matches!(take(&other, Taken::Refuse), Err(ImageError::AlreadyExists { .. })));
    let session = fixture.store.resolve(&format!("image@{}", first.digest)).expect("by its digest");
    assert!(matches!(take(&other, Taken::Replace), Err(ImageError::InUse { .. })));
    assert!(session.lower.join("a").is_file());
    drop(session);
    take(&other, Taken::Replace).expect("replaced");
    assert!(fixture.lower().join("b").is_file() && !fixture.lower().join("a").exists());
    let gone = fixture.store.resolve(&format!("image@{}", first.digest));
    assert!(matches!(gone, Err(ImageError::OtherDigest { .. })), "{gone:?}");
}
