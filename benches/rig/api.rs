//! An API in which everything is active, as a process of its own.

/// Serves it on a free port of loopback, and prints where.
#[tokio::main]
pub async fn serve() {
    use axum::extract::Path;
    use axum::routing::get;
    let asset = async |Path(id): Path<String>| {
        let body = format!(
            r#"{{"data":{{"id":"{id}","status":"active","type":"image","url":"https://cdn.example/{id}","size":{{"width":512,"height":512}}}},"err":{{}}}}"#
        );
        ([("content-type", "application/json")], body)
    };
    let router = axum::Router::new().route("/pub/v2/assets/{id}", get(asset));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    println!("http://{}", listener.local_addr().unwrap());
    axum::serve(listener, router).await.unwrap();
}

/// The configuration of a daemon that asks it, as fast as it can.
pub fn config(url: &str, in_flight: usize) -> String {
    format!("[api]\nurl = \"{url}\"\nkey_env = \"KEY\"\nrate = 100000\nmax_in_flight = {in_flight}\n")
}
