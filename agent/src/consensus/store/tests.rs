use openraft::testing::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::super::types::{StorageError, TypeConfig};
use super::*;

struct Builder;

impl StoreBuilder<TypeConfig, LogStore, MachineStore, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, MachineStore), StorageError> {
        let dir = TempDir::new().expect("a temporary directory");
        let store = Store::open(dir.path(), false, Disk::default()).await.expect("a new store opens");
        let machine = MachineStore::open(store.clone()).await.expect("a new store is readable");
        Ok((dir, LogStore::new(store), machine))
    }
}

#[test]
fn passes_openrafts_own_suite() {
    Suite::test_all(Builder).unwrap();
}

fn pledge_to(id: u32) -> Pledge {
    Pledge { to: HostId(id), to_name: format!("host-{id}"), expect: 3, holds: Vec::new() }
}

#[tokio::test]
async fn a_pledge_is_given_once_and_outlives_the_process() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), false, Disk::default()).await.unwrap();
    assert_eq!(store.pledged().await.unwrap(), None);
    assert_eq!(store.pledge(HostId(9), pledge_to(1)).await.unwrap(), PledgeReply::Pledged);
    store.close().await;

    let store = Store::open(dir.path(), false, Disk::default()).await.unwrap();
    assert_eq!(store.pledged().await.unwrap(), Some(pledge_to(1)));
    assert_eq!(store.pledge(HostId(9), pledge_to(1)).await.unwrap(), PledgeReply::Pledged);
    let refused = PledgeReply::PledgedToAnother { to: HostId(1), to_name: "host-1".to_owned() };
    assert_eq!(store.pledge(HostId(9), pledge_to(2)).await.unwrap(), refused);
    assert_eq!(store.pledged().await.unwrap(), Some(pledge_to(1)));
    store.close().await;
}

#[tokio::test]
async fn a_file_in_use_is_refused() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), false, Disk::default()).await.unwrap();
    let error = Store::open(dir.path(), false, Disk::default()).await.unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");
    store.close().await;
    assert!(matches!(store.pledged().await.unwrap_err(), StoreError::Closed { .. }));
    Store::open(dir.path(), false, Disk::default()).await.unwrap().close().await;
}

#[tokio::test]
async fn damage_is_refused_with_a_remedy_and_left_alone() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(FILE_NAME);
    let rubbish = vec![0xA5; 64 * 1024];
    std::fs::write(&path, &rubbish).unwrap();
    let error = Store::open(dir.path(), false, Disk::default()).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("move the whole state directory away"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), rubbish);
}

#[tokio::test]
async fn an_undecodable_value_is_damage() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), false, Disk::default()).await.unwrap();
    store
        .write(Durability::Immediate, |txn| {
            txn.open_table(META)?.insert(LEVEL, [0xFF; 3].as_slice())?;
            Ok(())
        })
        .await
        .unwrap();
    let error = MachineStore::open(store.clone()).await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    store.close().await;
}

#[tokio::test]
async fn a_host_of_a_mesh_never_begins_with_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let error = Store::open(dir.path(), true, Disk::default()).await.unwrap_err();
    assert!(matches!(error, StoreError::Lost { .. }), "{error}");
    std::fs::write(dir.path().join(FILE_NAME), b"").unwrap();
    let error = Store::open(dir.path(), true, Disk::default()).await.unwrap_err().to_string();
    assert!(error.contains("could vote twice") && error.contains("new id"), "{error}");
    std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    Store::open(dir.path(), false, Disk::default()).await.unwrap().close().await;
    Store::open(dir.path(), true, Disk::default()).await.unwrap().close().await;
}
