-- wrk: one scoring request, sent over and over. Filled in by benchmarks.harness.wrk.
wrk.method = "POST"
wrk.body = '@BODY@'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer @KEY@"
