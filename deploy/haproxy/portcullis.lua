-- Asks Portcullis about a request, with HAProxy's own HTTP client (2.5 or later), and does as it says.

-- Where Portcullis is.
local DOOR = "http://127.0.0.1:9192/"

-- The claim headers of portcullis.yaml, in lower case. What a client sends under these names never passes.
local CLAIM_HEADERS = { "x-auth-subject", "x-auth-tenant", "x-auth-roles" }

-- Milliseconds; longer than the providers' refresh.wait (2s), so that Portcullis gives up first.
local TIMEOUT = 3000

-- Belong to the connection and the body, which stay here, or are set below.
local NOT_SENT = {
    ["connection"] = true, ["content-length"] = true, ["expect"] = true, ["host"] = true,
    ["keep-alive"] = true, ["proxy-connection"] = true, ["te"] = true, ["trailer"] = true,
    ["transfer-encoding"] = true, ["upgrade"] = true,
    ["x-forwarded-method"] = true, ["x-forwarded-uri"] = true, ["x-forwarded-host"] = true,
    ["x-forwarded-proto"] = true,
}

-- What of a denial the client gets.
local PASSED_ON = { "www-authenticate", "retry-after", "content-type" }

-- HAProxy counts the lines of a header from 0.
local function lines(values)
    local list, i = {}, 0
    while values[i] ~= nil do
        list[#list + 1] = values[i]
        i = i + 1
    end
    return list
end

core.register_action("portcullis", { "http-req" }, function(txn)
    local question = {}
    for name, values in pairs(txn.http:req_get_headers()) do
        if not NOT_SENT[name] then
            question[name] = lines(values)
        end
    end
    -- What Portcullis judges. It reads these and believes no other header.
    question["x-forwarded-method"] = { txn.sf:method() }
    question["x-forwarded-uri"] = { txn.sf:pathq() }
    question["x-forwarded-host"] = { txn.sf:req_hdr("host") or "" }
    question["x-forwarded-proto"] = { txn.sf:ssl_fc() == 1 and "https" or "http" }

    local answer = core.httpclient():get({ url = DOOR, headers = question, timeout = TIMEOUT })

    if answer ~= nil and answer.status == 200 then
        for _, name in ipairs(CLAIM_HEADERS) do
            local value = answer.headers[name] and answer.headers[name][0]
            if value == nil or value == "" then
                txn.http:req_del_header(name)
            else
                txn.http:req_set_header(name, value)
            end
        end
        txn:set_var("txn.portcullis", "allowed")
        return
    end

    local status = answer ~= nil and answer.status or 0
    if status < 400 then
        status = 503
    end
    local denial = txn:reply({ status = status, body = answer ~= nil and answer.body or "" })
    for _, name in ipairs(PASSED_ON) do
        if answer ~= nil and answer.headers ~= nil and answer.headers[name] then
            denial:add_header(name, answer.headers[name][0])
        end
    end
    txn:done(denial)
end)
