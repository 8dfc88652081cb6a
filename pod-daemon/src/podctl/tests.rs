//! Whole command lines against the API of a node that is none.

mod event;
mod events;
mod image;

use std::{
    fs,
    io::{self, Write},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};

use super::{Output, run};
use crate::api::fake::{Served, serve};

/// What a command line printed, and its exit code.
#[derive(Debug, Eq, PartialEq)]
struct Done {
    code: u8,
    out: String,
    err: String,
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Buffer {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Somebody who does not read any more.
struct Gone;

impl Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn podctl(served: &Served, line: &str) -> Done {
    let words = ["podctl", "--socket", served.socket.to_str().unwrap()];
    let words: Vec<_> = words.into_iter().chain(line.split_whitespace()).collect();
    let (out, err) = (Buffer::default(), Buffer::default());
    let mut output = Output::new(out.clone(), err.clone());
    let run = tokio::time::timeout(Duration::from_secs(20), run(words, &mut output));
    let code = run.await.unwrap_or_else(|_| panic!("`{line}` hangs: {}{}", out.text(), err.text()));
    Done { code, out: out.text(), err: err.text() }
}

async fn check(served: &Served, line: &str, code: u8, out: &str, err: &str) {
    let done = podctl(served, line).await;
    assert_eq!(done, Done { code, out: out.to_owned(), err: err.to_owned() }, "{line}");
}

fn file(served: &Served, name: &str, text: &str) -> String {
    let path = served.dir.path().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path.display().to_string()
}

const WEB: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec: {containers: [{name: a, image: 'dir:/'}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {k: v}
";

#[tokio::test]
async fn apply_creates_and_recognises_what_is_there() {
    let served = serve();
    let web = file(&served, "web.yaml", WEB);
    let apply = format!("apply -f {web}");
    // Config maps come first, wherever they stand.
    check(&served, &apply, 0, "configmap/conf created\npod/web created\n", "").await;
    check(&served, &apply, 0, "configmap/conf unchanged\npod/web unchanged\n", "").await;

    let changed =
        WEB.replace("dir:/", "dir:/x").replace("{app: web}", "{app: x}, annotations: {by: me}");
    let changed = changed.replace("k: v", "k: w");
    let changed = file(&served, "changed.yaml", &changed);
    check(
        &served,
        &format!("apply -f {changed}"),
        1,
        "configmap/conf configured\n",
        &format!(
            "error: {changed}: pod `web` exists and cannot be changed in metadata.labels.app, \
             metadata.annotations.by, spec.containers[0].image; delete it first: podctl delete pod web -n default\n"
        ),
    )
    .await;
}

#[tokio::test]
async fn apply_reads_folders_and_goes_on_after_errors() {
    let served = serve();
    file(
        &served,
        "dir/b.json",
        &json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b", "namespace": "other"},
            "spec": {"containers": [{"name": "a", "image": "x", "stdin": true}]},
        })
        .to_string(),
    );
    file(&served, "dir/a.yml", &WEB.replace("web", "a").replace("conf", "c"));
    file(&served, "dir/broken.yaml", "a: [");
    file(&served, "dir/service.yaml", "kind: Service\nmetadata: {name: s}");
    file(&served, "dir/notes.txt", "not a manifest");
    let dir = served.dir.path().join("dir");

    let done = podctl(&served, &format!("apply -f {} -f /no/such", dir.display())).await;
    assert_eq!((done.code, done.out.as_str()), (1, "configmap/c created\npod/a created\n"));
    let errors: Vec<_> = done.err.lines().collect();
    assert_eq!(errors.len(), 4, "{errors:?}");
    assert!(errors[0].contains("broken.yaml: line "), "{errors:?}");
    assert!(errors[1].ends_with("kind `Service` is not supported, only Pod, ConfigMap and Secret"));
    assert!(errors[2].starts_with("error: cannot read `/no/such`: No such file"));
    assert!(errors[3].ends_with(
        "b.json: pod `b` is invalid: spec.containers[0].stdin: `true` is not supported yet, only \
         `false` is"
    ));

    let line = format!("apply --unsupported=warn -f {}/b.json", dir.display());
    check(
        &served,
        &line,
        0,
        "pod/b created\n",
        "warning: pod/b: spec.containers[0].stdin: `true` is not supported yet, only `false` is, \
         ignored\n",
    )
    .await;
    let done = podctl(&served, &format!("apply -n default -f {}/b.json", dir.display())).await;
    assert!(
        done.err.ends_with("pod `b` is for namespace `other`, the command line says `default`\n")
    );
}

/// Two pods in two namespaces.
fn populate(served: &Served) {
    for (namespace, name, containers) in [("default", "web", 1), ("other", "long-name", 2)] {
        served.node.change(namespace, name, |pod| {
            let names = &["a", "b"][..containers];
            let containers: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
            let statuses: Vec<_> = names
                .iter()
                .map(|name| {
                    json!({
                        "name": name, "image": "", "imageID": "", "ready": true, "restartCount": 0,
                        "state": {"running": {}},
                    })
                })
                .collect();
            pod.metadata.labels = Some([("app".to_owned(), name.to_owned())].into());
            pod.metadata.creation_timestamp =
                Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                    jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * 30),
                ));
            pod.spec = serde_json::from_value(json!({"containers": containers})).unwrap();
            let status =
                json!({"phase": "Running", "podIP": "10.0.0.1", "containerStatuses": statuses});
            pod.status = Some(serde_json::from_value::<PodStatus>(status).unwrap());
        });
    }
}

#[tokio::test]
async fn get_shows_tables_names_and_objects() {
    let served = serve();
    check(&served, "get pods", 0, "", "No resources found in default namespace.\n").await;
    populate(&served);
    let table = "\
NAMESPACE   NAME   READY   STATUS    RESTARTS   AGE   IP
default     web    1/1     Running   0          30d   10.0.0.1
";
    check(&served, "get pods", 0, table, "").await;
    check(&served, "get po/web", 0, table, "").await;
    check(&served, "get pods -A -l app=web", 0, table, "").await;
    check(
        &served,
        "get pod -A",
        0,
        "\
NAMESPACE   NAME        READY   STATUS    RESTARTS   AGE   IP
default     web         1/1     Running   0          30d   10.0.0.1
other       long-name   2/2     Running   0          30d   10.0.0.1
",
        "",
    )
    .await;
    let done = podctl(&served, "get pods -o wide").await;
    assert!(done.out.starts_with(
        "NAMESPACE   NAME   READY   STATUS    RESTARTS   AGE   IP         NODE     IMAGES\n"
    ));
    check(&served, "get pods -A -o name", 0, "pod/web\npod/long-name\n", "").await;
    check(&served, "get pods web nope", 1, table, "error: pods \"nope\" not found\n").await;
    check(&served, "get pod nope -o yaml", 1, "", "error: pods \"nope\" not found\n").await;

    let one: Value =
        serde_json::from_str(&podctl(&served, "get pod web -o json").await.out).unwrap();
    assert_eq!(one["kind"], "Pod");
    let list: Value = serde_json::from_str(&podctl(&served, "get pods -o json").await.out).unwrap();
    assert_eq!((&list["kind"], &list["items"][0]["kind"]), (&json!("List"), &json!("Pod")));
    let yaml = podctl(&served, "get pod web -o yaml").await.out;
    assert!(yaml.starts_with("apiVersion: v1\nkind: Pod\nmetadata:\n"), "{yaml}");
    let again: Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(again, one);
}

#[tokio::test]
async fn get_watches() {
    let served = serve();
    populate(&served);
    let words = ["podctl", "--socket", served.socket.to_str().unwrap(), "get", "pods", "-w"];
    let (out, err) = (Buffer::default(), Buffer::default());
    let mut output = Output::new(out.clone(), err.clone());
    let until = async |lines: usize| {
        while out.text().lines().count() < lines {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let changes = async {
        until(2).await;
        served.node.change("default", "web", |pod| {
            pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
        });
        until(3).await;
        served.node.change("default", "a-longer-name", |_| {});
        until(4).await;
        served.shutdown.cancel();
    };
    let (code, ()) = tokio::join!(run(words, &mut output), changes);
    assert_eq!((code, err.text().as_str()), (0, ""));
    assert_eq!(
        out.text(),
        "\
NAMESPACE   NAME   READY   STATUS    RESTARTS   AGE   IP
default     web    1/1     Running   0          30d   10.0.0.1
default     web    1/1     Terminating   0          30d   10.0.0.1
default     a-longer-name   0/0     Pending       0          <unknown>   <none>
"
    );
}

#[tokio::test]
async fn config_maps_are_listed_too() {
    let served = serve();
    let web = file(&served, "web.yaml", WEB);
    podctl(&served, &format!("apply -f {web}")).await;
    let done = podctl(&served, "get cm").await;
    assert_eq!(done.out, "NAMESPACE   NAME   DATA   AGE\ndefault     conf   1      <unknown>\n");
    let done = podctl(&served, "get pod/web cm/conf -o name").await;
    assert_eq!(done.out, "pod/web\nconfigmap/conf\n");
}

#[tokio::test]
async fn secrets_are_listed_without_what_they_say() {
    let served = serve();
    let text =
        "apiVersion: v1\nkind: Secret\nmetadata: {name: login}\nstringData: {pass: hunter2}\n";
    let path = file(&served, "login.yaml", text);
    check(&served, &format!("apply -f {path}"), 0, "secret/login created\n", "").await;
    check(&served, &format!("apply -f {path}"), 0, "secret/login unchanged\n", "").await;
    let path = file(&served, "login.yaml", &text.replace("hunter2", "hunter3"));
    check(&served, &format!("apply -f {path}"), 0, "secret/login configured\n", "").await;
    let done = podctl(&served, "get secrets").await;
    assert!(done.out.contains("default     login   Opaque   1"), "{done:?}");
    let done = podctl(&served, "describe secret login").await;
    assert!(done.out.contains("pass:  7 bytes") && !done.out.contains("hunter"), "{done:?}");
    check(&served, "delete secret login", 0, "secret/login deleted\n", "").await;
}

#[tokio::test]
async fn delete_waits_until_pods_are_gone() {
    let served = serve();
    populate(&served);
    check(
        &served,
        "delete pod web nope",
        1,
        "pod/web deleted\n",
        "error: pods \"nope\" not found\n",
    )
    .await;
    check(&served, "get pod web", 1, "", "error: pods \"web\" not found\n").await;
    check(&served, "delete pod nope --ignore-not-found", 0, "", "").await;
    check(
        &served,
        "delete -n other pods --all --now --wait=false",
        0,
        "pod/long-name deleted\n",
        "",
    )
    .await;
    check(&served, "delete pods", 2, "", "error: name the pods, or say --all\n").await;

    let web = file(&served, "web.yaml", WEB);
    podctl(&served, &format!("apply -f {web}")).await;
    check(
        &served,
        &format!("delete -f {web} --grace-period=0"),
        0,
        "pod/web deleted\nconfigmap/conf deleted\n",
        "",
    )
    .await;
}

#[tokio::test]
async fn logs_are_printed() {
    let served = serve();
    populate(&served);
    let path = served.dir.path().join("0.log");
    fs::write(&path, "2026-01-01T00:00:00Z stdout F one\n2026-01-01T00:00:00Z stdout F two\n")
        .unwrap();
    served.node.set_logs(vec![path], false);
    check(&served, "logs web", 0, "one\ntwo\n", "").await;
    check(&served, "logs pod/web --tail 1 --timestamps", 0, "2026-01-01T00:00:00Z two\n", "").await;
    check(&served, "logs web -f --tail=-1 -c a", 0, "one\ntwo\n", "").await;
    check(&served, "logs web --since 5m", 0, "", "").await;
    let note = "Defaulted container \"a\" out of: a, b\n";
    check(&served, "logs -n other long-name", 0, "one\ntwo\n", note).await;
    check(&served, "logs nope", 1, "", "error: pods \"nope\" not found\n").await;
    assert_eq!(podctl(&served, "logs web --since yesterday").await.code, 2);
}

#[tokio::test]
async fn exec_passes_output_and_exit_code_on() {
    let served = serve();
    populate(&served);
    check(&served, "exec web -- echo out", 0, "out\n", "").await;
    check(
        &served,
        "exec pod/web -- ls /no/such",
        2,
        "",
        "ls: cannot access '/no/such': No such file or directory\n",
    )
    .await;
    check(&served, "exec web -- false", 1, "", "").await;
    let note = "Defaulted container \"a\" out of: a, b\n";
    check(&served, "exec -n other long-name -- true", 0, "", note).await;
    check(&served, "exec nope -- true", 1, "", "error: pods \"nope\" not found\n").await;
    check(
        &served,
        "exec -t web -- true",
        2,
        "",
        "error: terminals are not supported yet: leave out -t\n",
    )
    .await;
    assert_eq!(podctl(&served, "exec web").await.code, 2);
}

#[tokio::test]
async fn top_shows_what_the_probes_saw() {
    let served = serve();
    populate(&served);
    check(
        &served,
        "top pods",
        0,
        "\
NAMESPACE   NAME   CPU(cores)   MEMORY(bytes)   EXECS   RX      TX   READ   WRITTEN
default     web    248m         5Mi             2       4.0Ki   20   0      8.0Ki
",
        "",
    )
    .await;
    check(
        &served,
        "top pod web --containers",
        0,
        "\
NAMESPACE   POD   NAME   CPU(cores)   MEMORY(bytes)   EXECS   RX      TX   READ   WRITTEN
default     web   a      124m         5Mi             1       2.0Ki   10   0      4.0Ki
default     web   b      124m         <unknown>       1       2.0Ki   10   0      4.0Ki
",
        "",
    )
    .await;
    check(&served, "top pods -n empty", 0, "", "No resources found\n").await;
}

#[tokio::test]
async fn describe_shows_what_the_node_has_and_what_pods_asked_for() {
    let served = serve();
    served.node.change("default", "web", |pod| {
        let spec = json!({"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "1500m"}}},
        ]});
        pod.spec = Some(serde_json::from_value(spec).unwrap());
    });
    let shown = "\
Name:  here

RESOURCE                  CAPACITY   ALLOCATABLE   REQUESTED   FREE
cpu                       4          3500m         1500m       2
podscope.dev/containers   0          0             1           0
podscope.dev/volumes      0          0             1           0
podscope.dev/addresses    0          0             1           0

Pods:  1 with a place, 0 waiting
";
    check(&served, "describe node", 0, shown, "").await;
}

#[tokio::test]
async fn describe_shows_a_pod() {
    let served = serve();
    populate(&served);
    let done = podctl(&served, "describe pod web").await;
    assert!(done.out.starts_with("Name:         web\nNamespace:    default\n"), "{}", done.out);
    assert_eq!(podctl(&served, "describe pod nope").await.code, 1);
}

#[tokio::test]
async fn failures_have_words_and_codes() {
    let served = serve();
    assert_eq!(
        podctl(&served, "version").await.out,
        format!(
            "Client Version: v{0}\nServer Version: v1.36.0+podscope-{0}\n",
            env!("CARGO_PKG_VERSION")
        )
    );
    assert_eq!(podctl(&served, "get").await.code, 2);
    assert_eq!(podctl(&served, "get services").await.code, 2);
    assert_eq!(podctl(&served, "frobnicate").await.code, 2);
    let help = podctl(&served, "get --help").await;
    assert_eq!((help.code, help.err.as_str()), (0, ""));

    let mut output = Output::new(Gone, Gone);
    populate(&served);
    let socket = served.socket.to_str().unwrap();
    assert_eq!(run(["podctl", "--socket", socket, "get", "pods"], &mut output).await, 0);

    let nobody = Path::new("/no/such.sock");
    let err = Buffer::default();
    let mut output = Output::new(Buffer::default(), err.clone());
    let words = ["podctl", "--socket", nobody.to_str().unwrap(), "get", "pods"];
    assert_eq!(run(words, &mut output).await, 1);
    assert_eq!(
        err.text(),
        "error: no daemon listens on `/no/such.sock` (No such file or directory (os error 2)); \
         start it with `pod-daemon`, or name its socket with \
         --socket or PODSCOPE_SOCKET\n"
    );
}
