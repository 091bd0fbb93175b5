-- Asks Portcullis about a request, with HAProxy's own HTTP client (2.5 or later), and does as it says.

-- Where Portcullis is.
local DOOR = "http://127.0.0.1:9192/"

-- The claim headers of portcullis.yaml, in lower case. What a client sends under these names is taken away before the
-- question; Portcullis refuses (400) a request that still has one, so that a header that is new in portcullis.yaml and
-- forgotten here cannot be forged.
local CLAIM_HEADERS = { "x-auth-subject", "x-auth-tenant", "x-auth-roles" }

-- Headers besides that the app gets as the answer has them. With forward_token: false and tokens in cookies: { "cookie" }
local FROM_ANSWER = {}

-- Milliseconds; longer than the providers' refresh.wait (2s), so that Portcullis gives up first.
local TIMEOUT = 3000

-- Belong to the connection and the body, which stay here, or are HAProxy's own, or are set below.
local NOT_SENT = {
    ["connection"] = true, ["content-length"] = true, ["expect"] = true, ["host"] = true,
    ["keep-alive"] = true, ["proxy-connection"] = true, ["te"] = true, ["trailer"] = true,
    ["transfer-encoding"] = true, ["upgrade"] = true,
    ["x-forwarded-method"] = true, ["x-forwarded-uri"] = true, ["x-forwarded-host"] = true,
    ["x-forwarded-proto"] = true,
}

-- Of a denial, belong to the connection between Portcullis and HAProxy; everything else the client gets.
local NOT_PASSED_ON = {
    ["connection"] = true, ["content-length"] = true, ["keep-alive"] = true, ["transfer-encoding"] = true,
}

-- What the client gets where there is no answer.
local UNAVAILABLE =
    '{"error":"temporarily_unavailable","error_description":"the token cannot be verified at the moment"}'

-- HAProxy counts the lines of a header from 0.
local function lines(values)
    local list, i = {}, 0
    while values[i] ~= nil do
        list[#list + 1] = values[i]
        i = i + 1
    end
    return list
end

local function set_from(txn, answer, names)
    for _, name in ipairs(names) do
        local value = answer.headers[name] and answer.headers[name][0]
        if value == nil or value == "" then
            txn.http:req_del_header(name)
        else
            txn.http:req_set_header(name, value)
        end
    end
end

-- Whether HAProxy made this answer itself, which its HTTP client gives for one where it has none.
local function is_haproxys_own(answer)
    local caching = answer.headers and answer.headers["cache-control"]
    return caching ~= nil and caching[0] == "no-cache"
end

local function refuse(txn, answer)
    local denial
    if answer ~= nil and answer.status >= 400 and not is_haproxys_own(answer) then
        denial = txn:reply({ status = answer.status, body = answer.body or "" })
        for name, values in pairs(answer.headers or {}) do
            if not NOT_PASSED_ON[name] then
                for _, value in ipairs(lines(values)) do
                    denial:add_header(name, value)
                end
            end
        end
    else
        denial = txn:reply({ status = 503, body = UNAVAILABLE })
        denial:add_header("content-type", "application/json")
        denial:add_header("retry-after", "1")
    end
    txn:done(denial)
end

core.register_action("portcullis", { "http-req" }, function(txn)
    for _, name in ipairs(CLAIM_HEADERS) do
        txn.http:req_del_header(name)
    end
    local question = {}
    for name, values in pairs(txn.http:req_get_headers()) do
        if not NOT_SENT[name] then
            question[name] = lines(values)
        end
    end
    -- What Portcullis judges. It reads these and believes no other header. req_fhdr is the whole line: req_hdr would
    -- be what stands behind its last comma.
    question["x-forwarded-method"] = { txn.sf:method() }
    question["x-forwarded-uri"] = { txn.sf:pathq() }
    question["x-forwarded-host"] = { txn.sf:req_fhdr("host") or "" }
    question["x-forwarded-proto"] = { txn.sf:ssl_fc() == 1 and "https" or "http" }

    local answer = core.httpclient():get({ url = DOOR, headers = question, timeout = TIMEOUT })

    if answer ~= nil and answer.status == 200 then
        set_from(txn, answer, CLAIM_HEADERS)
        set_from(txn, answer, FROM_ANSWER)
        txn:set_var("txn.portcullis", "allowed")
        return
    end
    refuse(txn, answer)
end)

-- HAProxy passes trailers on, and has no rule for them: this looks for one in what is about to be passed on, and
-- breaks the request off there.
local Trailers = { id = "no-trailers", flags = filter.FLT_CFG_FL_HTX }
Trailers.__index = Trailers

function Trailers:new()
    return setmetatable({}, Trailers)
end

local function refuse_trailers(txn, message)
    if message.channel:is_resp() then
        return filter.CONTINUE
    end
    for block = 0, txn.f:internal_htx_nbblks() - 1 do
        if txn.f:internal_htx_blk_type(tostring(block)) == "HTX_BLK_TLR" then
            return filter.ERROR
        end
    end
    return filter.CONTINUE
end

function Trailers:http_headers(txn, message)
    if not message.channel:is_resp() and txn.f:internal_htx_has_eom() ~= 1 then
        filter.register_data_filter(self, message.channel)
    end
    return refuse_trailers(txn, message)
end

-- Returns nothing, which is: everything may pass.
function Trailers:http_payload(txn, message)
    if refuse_trailers(txn, message) == filter.ERROR then
        return filter.ERROR
    end
end

function Trailers:http_end(txn, message)
    return refuse_trailers(txn, message)
end

core.register_filter("no-trailers", Trailers, function(trailers)
    return trailers
end)
