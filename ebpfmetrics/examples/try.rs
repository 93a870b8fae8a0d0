use std::time::Duration;
use ebpfmetrics::*;
fn main() {
    let mut p = match CpuProbe::builder().threads(true).load() { Ok(p)=>p, Err(e)=>{ println!("{e}\n{:?}", e); println!("{}", e.verifier_log().unwrap_or("")); return } };
    for i in 0..3 {
        let _c = std::process::Command::new("sh").args(["-c","for i in 1 2 3; do :; done; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done"]).status();
        let s = p.reset().unwrap();
        let mut rows: Vec<_> = s.processes.iter().filter(|r| r.usage.cpu_time > Duration::from_micros(500)).collect();
        rows.sort_by_key(|r| std::cmp::Reverse(r.usage.cpu_time));
        println!("--- {i} window {:?} rows {} idle {:?} threads {} losses {:?}", s.window.duration(), s.processes.len(), s.idle(), s.system.threads.len(), s.losses.iter().filter(|l| l.count>0).collect::<Vec<_>>());
        for r in rows.iter().take(6) { println!("{:?} {:?} exited={} state {:?} parent {:?} creator {:?}", r.id, r.info.comm, r.info.exited, r.info.state, r.info.parent.map(|p|p.pid), r.info.creator.map(|p|p.pid)); println!("   {:?} total {:?}", r.usage, r.total.cpu_time); }
    }
    println!("{:?}", p.health());
}
