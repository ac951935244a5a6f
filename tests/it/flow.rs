//! The main job, end to end: an asset is watched, settles, and its hook is told.

use crate::rig::{Daemon, KEY, Place, Server, is_signed, run, webhook};

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_insert_is_settled_and_told() {
    let (api, receiver) = (Server::api().await, Server::receiver().await);
    let place = Place::new(&api, &webhook(&receiver));
    let daemon = Daemon::start(&place).await;
    let insert = "INSERT INTO watches (asset_id) VALUES ('active_1') ON CONFLICT DO NOTHING";
    place.database().execute(insert, []).unwrap();
    place.until_state("active_1", "settled").await;
    let told = receiver.until(1).await;
    assert!(is_signed(&told[0]));
    assert_eq!(told[0].json()["type"], "asset.active");
    assert_eq!(told[0].json()["data"]["url"], "https://cdn.example/active_1");
    assert_eq!(told[0].json()["data"]["previous_status"], "processing");
    assert!(api.requests().iter().all(|request| request.header("x-api-key") == Some(KEY)));
    assert!(daemon.stop().await.success());
    let shown = run(&place, &["show", "active_1", "--json"]).await.json();
    assert_eq!(shown[0]["deliveries"][0]["state"], "delivered");
    assert_eq!(shown[0]["attempts"].as_array().unwrap().len(), 1);
}
