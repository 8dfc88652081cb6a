//! Pulls that are cut, and blobs that are not what they should be.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_download_is_continued_where_it_was_cut() {
    let (hub, node) = (Hub::start().await, Node::new());
    let layer = big_layer(1, 400_000);
    let size = layer.blob.len();
    hub.push("app", "v1", &[layer]);
    hub.rules(Rules { cut: Some((150_000, 2)), ..Rules::default() });

    node.pull(&hub.name("app:v1"), &[]).await.unwrap();

    let ranges: Vec<_> = hub.asked_blobs().into_iter().skip(1).map(|asked| asked.range).collect();
    let ranges: Vec<_> = ranges.iter().map(|range| range.as_deref().unwrap()).collect();
    assert_eq!(ranges, ["bytes=0-", "bytes=150000-", "bytes=300000-"], "of {size}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_pull_continues_even_in_another_process() {
    let (hub, node) = (Hub::start().await, Node::new());
    hub.push("app", "v1", &[big_layer(1, 400_000)]);
    hub.rules(Rules { cut: Some((100_000, 1)), status: None, ..Rules::default() });
    // After the cut the registry is gone.
    let ill = hub.clone();
    let watcher = tokio::spawn(async move {
        while ill.state().rules.cut.is_some_and(|(_, times)| times > 0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        ill.rules(Rules { status: Some(503), ..Rules::default() });
    });
    let error = node.pull(&hub.name("app:v1"), &[]).await.unwrap_err();
    watcher.await.unwrap();
    assert_eq!(error.reason, "RegistryUnavailable", "{error}");
    assert_eq!(node.counts(), [0, 0, 0, 0]);
    assert!(node.blobs().iter().any(|blob| blob.ends_with(".partial")), "{:?}", node.blobs());

    hub.rules(Rules::default());
    hub.asked();
    let Node { dir, images } = node;
    drop(images);
    let images = open(dir.path(), Vec::new());
    images.pull(&hub.name("app:v1").parse().unwrap(), &[]).result().await.unwrap();
    let last = hub.asked_blobs().pop().unwrap();
    assert_eq!(last.range.as_deref(), Some("bytes=100000-"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_beginning_is_noticed_and_fetched_anew() {
    for no_ranges in [false, true] {
        let (hub, node) = (Hub::start().await, Node::new());
        let layer = big_layer(1, 100_000);
        let digest = Digest::of(&layer.blob);
        let blobs = node.dir.path().join("blobs/sha256");
        fs::write(blobs.join(format!("{}.partial", digest.hex())), vec![0; 50_000]).unwrap();
        hub.push("app", "v1", &[layer]);
        hub.rules(Rules { no_ranges, ..Rules::default() });
        node.pull(&hub.name("app:v1"), &[]).await.unwrap();
        assert_eq!(node.counts(), [1, 1, 0, 1]);
    }
    // One that has its full name after a power cut, too.
    let (hub, node) = (Hub::start().await, Node::new());
    let layer = big_layer(1, 100_000);
    let path = node.dir.path().join("blobs/sha256").join(Digest::of(&layer.blob).hex());
    fs::write(path, vec![0; layer.blob.len()]).unwrap();
    hub.push("app", "v1", &[layer]);
    node.pull(&hub.name("app:v1"), &[]).await.unwrap();
    assert_eq!(node.counts(), [1, 1, 0, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_an_earlier_pull_left_only_the_damaged_blob_is_fetched_anew() {
    let (hub, node) = (Hub::start().await, Node::new());
    let layers: Vec<_> = (1..4).map(|seed| big_layer(seed, 50_000)).collect();
    let blobs = node.dir.path().join("blobs/sha256");
    for (index, layer) in layers.iter().enumerate() {
        // Two of the three are damaged.
        let blob = if index == 1 { layer.blob.clone() } else { vec![0; layer.blob.len()] };
        fs::write(blobs.join(Digest::of(&layer.blob).hex()), blob).unwrap();
    }
    hub.push("app", "v1", &layers);
    node.pull(&hub.name("app:v1"), &[]).await.unwrap();
    assert_eq!(node.counts(), [3, 3, 0, 1]);
    let asked = hub.asked_blobs();
    for (layer, times) in layers.iter().zip([1, 0, 1]) {
        let digest = Digest::of(&layer.blob).to_string();
        let asked = asked.iter().filter(|asked| asked.path.ends_with(&digest)).count();
        assert_eq!(asked, times, "{digest}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_refused_is_not_fetched_again() {
    let (hub, node) = (Hub::start().await, Node::new());
    hub.push("app", "v1", &[big_layer(1, 50_000)]);
    let name = hub.name("app:v1");
    let pull = async |entries, bytes| {
        let store = Store::open(node.dir.path()).unwrap();
        let store = store.with_limits(Limits { entries, bytes });
        let images = Images::new(store, settings(node.dir.path(), Vec::new()));
        images.pull(&name.parse().unwrap(), &[]).result().await
    };
    let error = pull(0, 1 << 20).await.unwrap_err();
    assert!(error.message.contains("more than 0 entries"), "{error}");
    assert_eq!(hub.asked_blobs().len(), 2);
    // Another copy would be as large.
    pull(0, 1 << 20).await.unwrap_err();
    let error = pull(10, 50_100).await.unwrap_err();
    assert!(error.message.contains("limit for a layer"), "{error}");
    assert!(hub.asked_blobs().is_empty());
    pull(10, 1 << 20).await.unwrap();
    assert!(hub.asked_blobs().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn lies_are_noticed_and_leave_nothing() {
    let lies: [(Lie, &str); 4] = [
        (|bytes| vec![7; bytes.len()], "bytes of sha256:"),
        (|bytes| [bytes, b"x"].concat(), "more bytes than"),
        (|bytes| bytes[..bytes.len() - 1].to_vec(), "sends only"),
        (|_| Vec::new(), "sends only"),
    ];
    for (lie, problem) in lies {
        let (hub, node) = (Hub::start().await, Node::new());
        hub.push("app", "v1", &two_layers());
        hub.rules(Rules { lie: Some(lie), ..Rules::default() });
        let error = node.pull(&hub.name("app:v1"), &[]).await.unwrap_err();
        assert_eq!(error.reason, "ErrImagePull");
        assert!(error.message.contains(problem), "{problem}: {error}");
        assert_eq!(node.counts(), [0, 0, 0, 0]);
        let whole: Vec<_> =
            node.blobs().into_iter().filter(|blob| !blob.ends_with("partial")).collect();
        assert!(whole.len() <= 1, "more than the config: {whole:?}");
    }

    let (hub, node) = (Hub::start().await, Node::new());
    let digest = hub.push("app", "v1", &two_layers());
    let wrong = Digest::of(b"").to_string();
    hub.rules(Rules { digest_header: Some(wrong.clone()), ..Rules::default() });
    let error = node.pull(&hub.name("app:v1"), &[]).await.unwrap_err();
    assert!(error.message.contains(&wrong), "{error}");
    // A digest in the name is what counts.
    hub.rules(Rules::default());
    hub.document("app", &digest.to_string(), MANIFEST, b"{}");
    let error = node.pull(&hub.name(&format!("app@{digest}")), &[]).await.unwrap_err();
    assert!(error.message.contains("whose digest is"), "{error}");
    let bomb = vec![b' '; 9 << 20];
    hub.document("app", "bomb", MANIFEST, &bomb);
    let error = node.pull(&hub.name("app:bomb"), &[]).await.unwrap_err();
    assert!(error.message.contains("no manifest is that large"), "{error}");
    assert_eq!(node.counts(), [0, 0, 0, 0]);
}
