-- wrk: one scoring request, repeated. Template of benchmarks.harness.wrk.
wrk.method = "POST"
wrk.body = '@BODY@'
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer @KEY@"
